// The picture that a drawing starts from: by file, paste or drop, with how far the drawing may leave it.

import { find, h, icon, toast } from "/ui/elements.js";
import { settingsOf } from "/ui/picture_settings.js";
import { show } from "/ui/api.js";
import { changes as words, t } from "/ui/words.js";

const MOST = 40 * 2 ** 20; // bytes, as the server takes
const KINDS = ["image/png", "image/jpeg", "image/webp"];

export class StartPicture {
  blob = null;
  strength = 0.6;

  /** `restore` is given the settings of a picture of ours that was given; `changed` is called at each change. */
  constructor({ restore, changed }) {
    this.restore = restore;
    this.changed = changed;
    this.section = find("start");
    const file = find("picture-file");
    find("pick-picture").addEventListener("click", () => file.click());
    file.addEventListener("change", () => {
      if (file.files[0]) this.#take(file.files[0]);
      file.value = "";
    });
    document.addEventListener("paste", (event) => this.#offered(event.clipboardData, event));
    this.#watchDrops();
    words.addEventListener("language", () => this.blob && this.#render());
  }

  #watchDrops() {
    const veil = find("drop");
    let depth = 0; // entering a child fires before leaving its parent
    const carries = (event) => event.dataTransfer?.types.includes("Files");
    const modal = () => document.querySelector("dialog[open]");
    addEventListener("dragenter", (event) => {
      if (carries(event) && !modal()) veil.hidden = ++depth < 1;
    });
    addEventListener("dragleave", (event) => {
      if (carries(event) && !modal()) veil.hidden = (depth = Math.max(0, depth - 1)) === 0;
    });
    addEventListener("dragover", (event) => carries(event) && event.preventDefault());
    addEventListener("drop", (event) => {
      depth = 0;
      veil.hidden = true;
      if (!carries(event)) return;
      event.preventDefault(); // the browser would leave the page to show the file
      if (!modal()) this.#offered(event.dataTransfer, event);
    });
  }

  async #offered(transfer, event) {
    const file = [...(transfer?.files || [])][0];
    if (!file) return;
    event.preventDefault();
    await this.#take(file);
  }

  /** A picture of ours brings its settings back; any other is what to start from. */
  async #take(file) {
    const settings = KINDS.includes(file.type) ? await settingsOf(file) : null;
    if (!settings) {
      await this.use(file);
      return;
    }
    this.restore(settings);
    toast(t("restored"), { label: t("startInstead"), run: () => this.use(file) });
  }

  /** Starts from a picture, if it is one. */
  async use(blob, strength = this.strength) {
    if (blob.size > MOST) return toast(t("bigPicture"));
    try {
      if (!KINDS.includes(blob.type)) throw new Error(blob.type);
      await show(h("img"), blob);
    } catch {
      return toast(t("badPicture"));
    }
    this.blob = blob;
    this.strength = strength;
    this.#render();
    this.changed();
  }

  clear() {
    this.blob = null;
    this.section.hidden = true;
    this.section.replaceChildren();
    this.changed();
  }

  #render() {
    const image = h("img", { alt: "" });
    show(image, this.blob).catch(() => {});
    const value = h("output", { className: "strength-value", for: "strength", "aria-live": "off" }, this.strength.toFixed(2));
    const slider = h("input", {
      id: "strength", type: "range", min: "0.05", max: "1", step: "0.05", value: String(this.strength),
      on: {
        input: () => {
          this.strength = Number(slider.value);
          value.textContent = this.strength.toFixed(2);
          this.changed();
        },
      },
    });
    const away = h("button", { type: "button", className: "icon-button", "aria-label": t("remove"), title: t("remove"), on: { click: () => (this.clear(), find("pick-picture").focus()) } }, icon("close"));
    this.section.replaceChildren(
      image,
      h(
        "div",
        { className: "start-text" },
        h("p", { className: "start-title" }, t("startTitle")),
        h("label", { for: "strength" }, t("strength"), " ", value),
        slider,
        h("div", { className: "ends", "aria-hidden": "true" }, h("span", {}, t("close")), h("span", {}, t("free"))),
      ),
      away,
    );
    this.section.setAttribute("aria-label", t("startTitle"));
    this.section.hidden = false;
  }
}
