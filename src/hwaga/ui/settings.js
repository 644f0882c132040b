// The drawer: key, language, colours, and the server at a glance.

import * as api from "/ui/api.js";
import { complain, find, h, icon, radios, toast } from "/ui/elements.js";
import { drawnPlans } from "/ui/plan.js";
import { explained } from "/ui/refusals.js";
import { bytes, changes as words, choose, current, duration, t } from "/ui/words.js";

const LOOK = 2000; // ms

export class Settings {
  #timer = 0;
  #asked = false;

  /** `keyed` is called after a key has been entered. */
  constructor({ keyed }) {
    this.keyed = keyed;
    this.dialog = find("settings");
    find("open-settings").addEventListener("click", () => this.open());
    this.dialog.addEventListener("close", () => clearTimeout(this.#timer));
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    // It is asked for once, and again after another one has been tried; whoever closes the drawer is not pestered.
    api.changes.addEventListener("key", () => {
      if (!this.#asked) this.open(true);
      this.#asked = true;
    });
    words.addEventListener("language", () => {
      if (!this.dialog.open) return;
      this.#render();
      this.dialog.querySelector(".language-choice input:checked").focus();
    });
  }

  open(keyNeeded = false) {
    if (!this.dialog.open) {
      this.#render();
      this.dialog.showModal();
    }
    if (keyNeeded) {
      complain(find("key-error"), t(api.hasKey() ? "refused_invalid_api_key" : "keyNeeded"));
      find("key").focus();
    }
  }

  #render() {
    clearTimeout(this.#timer);
    let theme = document.documentElement.dataset.theme || "";
    const segment = (choice) => [h("span", {}, choice.title)];
    this.server = h("div", { className: "server" });
    this.plan = h("section", { hidden: true, "aria-labelledby": "plan-title" });
    const key = h("input", { id: "key", type: "password", autocomplete: "off", spellcheck: false, placeholder: api.hasKey() ? "••••••••" : "hwaga_…", "aria-describedby": "key-hint key-error" });
    this.dialog.replaceChildren(
      h("div", { className: "drawer-head" },
        h("h2", { id: "settings-title" }, t("settingsTitle")),
        h("button", { type: "button", className: "icon-button", "aria-label": t("shut"), title: t("shut"), on: { click: () => this.dialog.close() } }, icon("close"))),
      h("fieldset", { className: "field" }, h("legend", {}, t("language")), h("div", { className: "segments" }, ...radios("language", [{ value: "ko", title: "한국어" }, { value: "en", title: "English" }], { chosen: current(), face: segment, on: choose }))),
      h("fieldset", { className: "field" }, h("legend", {}, t("theme")), h("div", { className: "segments" }, ...radios("theme", ["", "light", "dark"].map((value) => ({ value, title: t(value || "system") })), {
        chosen: theme,
        face: segment,
        on: (value) => {
          theme = value;
          document.documentElement.dataset.theme = value;
          try {
            localStorage.setItem("hwaga.theme", value);
          } catch {
            // It holds until the page is closed.
          }
        },
      }))),
      h("form", { className: "field", autocomplete: "off", on: { submit: (event) => this.#saveKey(event, key) } },
        h("label", { for: "key" }, t("key")),
        h("div", { className: "with-button" }, key, h("button", { type: "submit", className: "secondary" }, t("save"))),
        h("p", { className: "error", id: "key-error", role: "alert", hidden: true }),
        h("p", { className: "hint", id: "key-hint" }, t("keyHint"))),
      h("section", { "aria-labelledby": "server-title" }, h("h3", { id: "server-title" }, t("server")), this.server),
      this.plan,
    );
    this.#look();
    this.#drawPlan();
  }

  async #saveKey(event, field) {
    event.preventDefault();
    api.setKey(field.value.trim());
    try {
      await api.get("/v1/status");
      complain(find("key-error"), "");
      field.value = "";
      toast(t("saved"));
      this.#asked = false;
      this.dialog.close();
      this.keyed();
    } catch (error) {
      complain(find("key-error"), explained(error));
    }
  }

  async #look() {
    try {
      const status = await api.get("/v1/status");
      const used = status.memory.reduce((sum, process) => sum + process.rss_anon_bytes, 0);
      const total = status.host_memory_bytes;
      const wait = status.queued + status.running ? status.expected_wait_seconds : 0;
      const line = (label, ...values) => h("div", {}, h("dt", {}, label), h("dd", {}, ...values));
      const parts = status.memory.map((process) => `${t(process.process === "front" ? "front" : "worker")} ${bytes(process.rss_anon_bytes)}`).join(" · ");
      const gpu = status.memory.filter((process) => process.vram_reserved_bytes);
      const share = (bytes) => h("i", { style: { "--share": total ? bytes / total : 0 } });
      this.server.replaceChildren(
        h("dl", { className: "facts" },
          line(t("model"), status.models.map((model) => model.title).join(", ")),
          line(t("queue"), t("queueLine", status), h("br"), h("span", { className: "hint" }, wait ? t("wait", { time: duration(wait) }) : t("waitNone"))),
          line(t("memory"), total ? t("memoryOf", { used: bytes(used), total: bytes(total) }) : bytes(used), h("span", { className: "share", "aria-hidden": "true" }, ...status.memory.map((process) => share(process.rss_anon_bytes))), h("span", { className: "hint" }, parts)),
          ...gpu.map((process) => line(t("gpuMemory"), t("gpuLine", { used: bytes(process.vram_used_bytes), held: bytes(process.vram_reserved_bytes) }))),
        ),
        ...(status.problem ? [h("p", { className: "error" }, status.problem)] : []),
        h("p", { className: "hint" }, t("version", { version: status.version })),
      );
    } catch (error) {
      this.server.replaceChildren(h("p", { className: "error" }, explained(error)));
    }
    clearTimeout(this.#timer);
    if (this.dialog.open) this.#timer = setTimeout(() => this.#look(), LOOK);
  }

  /** The plan of memory, where the server has one. */
  async #drawPlan() {
    const place = this.plan;
    try {
      const plan = await api.get("/v1/plan");
      place.replaceChildren(h("h3", { id: "plan-title" }, t("plan")), ...drawnPlans(plan));
      place.hidden = !plan.data.length;
    } catch (error) {
      if (!(error instanceof api.Refusal)) throw error;
      place.hidden = true; // an older server without plans, or none at the moment
    }
  }
}
