// The form: what is wanted, what the model will read, and sending it. What was typed is kept across reloads.

import * as api from "/ui/api.js";
import { Choices } from "/ui/choices.js";
import { announce, complain, debounced, find, h } from "/ui/elements.js";
import { requestOf } from "/ui/picture_settings.js";
import { explained } from "/ui/refusals.js";
import { StartPicture } from "/ui/start_picture.js";
import { changes as words, t } from "/ui/words.js";

const DRAFT = "hwaga.draft";
const MAX_SEED = 2 ** 32 - 1;
const MAX_NUMBER = 10;
const GUIDED = ["negative", "guidance", "sampler"];

export class Composer {
  #reading = null; // the AbortController of the latest look at what the model reads
  #pending = null; // {form, key}: one idempotency key for a form until it is accepted, so that a second try makes no second job
  #composed = null;
  #remodelled = null; // settles once the choices are those of the model that was chosen

  /** `remodel` is given the name of another model to draw with, and renews what is offered. */
  constructor(jobs, offer, { remodel }) {
    Object.assign(this, { jobs, offer, remodel });
    this.form = find("composer");
    this.prompt = find("prompt");
    const changed = () => this.#changed();
    this.choices = new Choices(offer, { changed });
    this.start = new StartPicture({ changed, restore: (settings) => this.fill(settings.request, null, settings.model) });
    this.look = debounced(350, () => this.#read());
    this.save = debounced(300, () => this.#save());
    addEventListener("pagehide", () => this.#save()); // one who reloads may have typed a moment ago
    this.form.addEventListener("input", changed);
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.form.addEventListener("keydown", (event) => {
      // Enter that ends a syllable of Korean is not one that sends.
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.isComposing) {
        event.preventDefault();
        this.#submit();
      }
    });
    find("model").addEventListener("change", ({ target }) => (this.#remodelled = this.remodel(target.value)));
    if (/Mac|iP/.test(navigator.platform)) this.form.querySelector("kbd").textContent = "⌘ ↵";
    find("fewer").addEventListener("click", () => this.#count(-1));
    find("more").addEventListener("click", () => this.#count(1));
    words.addEventListener("language", () => this.#render());
    this.#load();
    this.#render();
  }

  /** New choices, after the server has come back as another one. What it has not is no longer chosen. */
  renew() {
    const { choices } = this;
    choices.style = this.#offered(this.offer.styles, choices.style);
    choices.use = this.#offered(this.offer.status.uses, choices.use);
    choices.size = null;
    this.#render();
    this.#changed();
  }

  #offered(entries, name) {
    return name === "auto" || entries.some((entry) => entry.name === name) ? name : "";
  }

  #renderModel() {
    const { model, models } = this.offer.status;
    const options = (id, values) => find(id).replaceChildren(...values.map(([value, text]) => h("option", { value }, text)));
    options("model", models.map(({ name, title }) => [name, title]));
    find("model").value = model.name;
    find("models").hidden = models.length < 2;
    const { sampler } = this.#guided();
    options("sampler", model.samplers.map((name, place) => [place ? name : "", name]));
    find("sampler").value = sampler || "";
    if (find("sampler").selectedIndex < 0) find("sampler").selectedIndex = 0;
    find("guidance").placeholder = model.guidance;
    find("guided").hidden = model.guidance === null;
  }

  #render() {
    const { model } = this.offer.status;
    this.#renderModel();
    find("steps").placeholder = String(model.steps);
    find("steps").max = model.max_steps;
    this.choices.shown = null;
    this.choices.render();
    this.#showComposed();
    this.look();
  }

  #count(by) {
    const field = find("number");
    field.value = Math.min(MAX_NUMBER, Math.max(1, (Number(field.value) || 1) + by));
    this.#changed();
  }

  /** What only models with guidance take, as far as it is given. */
  #guided() {
    return Object.fromEntries(GUIDED.map((id) => [id, find(id).value.trim()]).filter(([, value]) => value));
  }

  /** Puts a request's values into the form, and chooses its model where it is here. A picture to start from is given beside. */
  async fill(carried, source = null, name = null) {
    const { model, models } = this.offer.status;
    if (name !== model.name && models.some((other) => other.name === name)) await this.remodel(name);
    const wanted = requestOf(carried);
    this.prompt.value = wanted.prompt;
    for (const id of ["seed", ...GUIDED]) find(id).value = wanted[id] ?? "";
    find("steps").value = wanted.steps && wanted.steps !== this.offer.status.model.steps ? wanted.steps : "";
    const { choices } = this;
    choices.style = this.#offered(this.offer.styles, wanted.style || "");
    choices.industry = wanted.industry || "";
    choices.use = this.#offered(this.offer.status.uses, wanted.use || "");
    const [width, height] = choices.pixels("");
    choices.size = !choices.use && wanted.size && wanted.size !== `${width}x${height}` ? wanted.size : null;
    choices.avoid = wanted.avoid || [];
    choices.loras = wanted.lora || [];
    find("options").open = find("options").open || Boolean(wanted.lora || wanted.avoid || wanted.seed !== undefined);
    if (source) this.start.use(source, wanted.strength);
    else if (this.start.blob) this.start.clear(); // those settings had nothing to do with it
    this.#render();
    this.#changed();
    this.focus();
  }

  focus() {
    this.form.scrollIntoView({ block: "start" });
    this.prompt.focus({ preventScroll: true });
  }

  #words() {
    const { style, use, avoid, industry } = this.choices;
    const { model, models } = this.offer.status;
    const guidance = model.guidance === null ? 0 : Number(find("guidance").value);
    return {
      prompt: this.prompt.value,
      ...(guidance >= 1 && guidance <= 30 && { guidance }),
      ...(models.length > 1 && { model: model.name }),
      ...(style && { style }),
      ...(industry && { industry }),
      ...(use && { use }),
      ...(avoid.length && { avoid }),
    };
  }

  /** What is wanted as the API takes it, or null after saying what is wrong. */
  #values() {
    const fail = (id, message) => {
      const field = find(id);
      if (field.closest("details")) field.closest("details").open = true;
      field.setAttribute("aria-invalid", "true");
      complain(find(id === "prompt" ? "prompt-error" : "make-error"), message);
      field.focus();
      return null;
    };
    const seed = find("seed").value.trim();
    const steps = find("steps").value.trim();
    const number = Number(find("number").value);
    const { max_steps: most, guidance: usual } = this.offer.status.model;
    const { guidance, ...guided } = usual === null ? {} : this.#guided();
    if (!this.prompt.value.trim()) return fail("prompt", t("empty"));
    if (!Number.isInteger(number) || number < 1 || number > MAX_NUMBER) return fail("number", t("badNumber"));
    if (seed && (!/^\d+$/.test(seed) || Number(seed) > MAX_SEED)) return fail("seed", t("badSeed"));
    if (steps && (!/^\d+$/.test(steps) || Number(steps) < 1 || Number(steps) > most)) return fail("steps", t("badSteps", { max: most }));
    if (guidance && !(Number(guidance) >= 1 && Number(guidance) <= 30)) return fail("guidance", t("badGuidance"));
    // Several pictures count up from a seed: where none was given, one is drawn here.
    const counted = seed ? Number(seed) : number > 1 ? randomSeed(number) : null;
    return {
      ...this.#words(),
      ...(counted !== null && { seed: counted }),
      ...(steps && { steps: Number(steps) }),
      ...guided,
      ...(this.choices.size && { size: this.choices.size }),
      ...(this.choices.loras.length && { lora: this.choices.loras }),
      ...(this.start.blob && { strength: this.start.strength }),
      number,
      previews: true,
    };
  }

  async #submit() {
    await this.#remodelled;
    this.#clear();
    const button = find("draw");
    if (button.getAttribute("aria-disabled") === "true") return;
    const values = this.#values();
    if (!values) return;
    const form = JSON.stringify([this.#words(), this.#guided(), find("seed").value, find("steps").value, values.number, values.size, values.lora, values.strength]);
    if (this.#pending?.form !== form || this.#pending.source !== this.start.blob) {
      this.#pending = { form, source: this.start.blob, values, key: api.newKey() };
    }
    button.setAttribute("aria-disabled", "true");
    button.firstChild.textContent = t("sending");
    try {
      const view = await this.jobs.submit(this.#pending.values, this.#pending.source, this.#pending.key);
      this.#pending = null;
      announce(t("queuedAgain"));
      document.querySelector(`[data-job="${view.id}"]`)?.scrollIntoView({ block: "nearest" });
    } catch (error) {
      complain(find(error.param === "prompt" ? "prompt-error" : "make-error"), explained(error));
      if (error.param === "prompt") this.prompt.setAttribute("aria-invalid", "true");
    } finally {
      button.removeAttribute("aria-disabled");
      button.firstChild.textContent = t("draw");
    }
  }

  #clear() {
    complain(find("prompt-error"), "");
    complain(find("make-error"), "");
    for (const field of this.form.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
  }

  #changed() {
    this.#clear();
    this.save();
    this.look();
  }

  async #read() {
    this.#reading?.abort();
    const reading = (this.#reading = new AbortController());
    if (!this.prompt.value.trim()) {
      this.#composed = null;
      this.#showComposed();
      return;
    }
    const asked = this.#words();
    try {
      this.#composed = { ...(await api.post("/v1/prompts/compose", asked, reading.signal)), typed: asked.prompt };
    } catch (error) {
      if (reading.signal.aborted) return;
      this.#composed = null;
      if (error.status === 400) complain(find("make-error"), explained(error));
    }
    if (!reading.signal.aborted) this.#showComposed();
  }

  #showComposed() {
    const composed = this.#composed;
    const tokens = find("tokens");
    const over = composed && composed.tokens > composed.token_limit;
    tokens.textContent = composed ? t(over ? "tooLong" : "tokens", { n: composed.tokens, limit: composed.token_limit }) : "";
    tokens.classList.toggle("over", Boolean(over));
    tokens.style.setProperty("--share", composed ? Math.min(1, composed.tokens / composed.token_limit) : 0);
    tokens.hidden = !composed;
    const place = find("composed");
    if (composed) {
      // What was typed stands first and unchanged; what the packs add follows.
      const typed = composed.prompt.startsWith(composed.typed) ? composed.typed : "";
      place.replaceChildren(h("span", {}, typed), h("span", { className: "added" }, composed.prompt.slice(typed.length)));
    } else place.textContent = t("nothingYet");
    place.classList.toggle("none", !composed);
    const loras = (composed?.loras || []).map((lora) => `LoRA ${lora.name}${lora.weight === 1 ? "" : ` × ${lora.weight}`}`);
    const negative = composed?.negative ? [`${t("negative")}: ${composed.negative}`] : [];
    find("notes").replaceChildren(...[...loras, ...negative, ...(composed?.notes || [])].map((note) => h("li", {}, note)));
    this.choices.renderShapes(composed?.aspect);
  }

  #save() {
    const { style, use, size, avoid, loras, industry } = this.choices;
    const fields = Object.fromEntries(["prompt", "seed", "steps", "number", ...GUIDED].map((id) => [id, find(id).value]));
    const model = this.offer.status.model.name;
    try {
      sessionStorage.setItem(DRAFT, JSON.stringify({ fields, model, style, use, size, avoid, loras, industry }));
    } catch {
      // Without storage a reload forgets what was typed.
    }
  }

  #load() {
    const draft = drafted();
    if (!draft) return;
    this.#renderModel();
    for (const [id, value] of Object.entries(draft.fields)) find(id).value = value;
    const { style, use, size, avoid, loras, industry } = draft;
    this.choices.render(); // the businesses must be there to choose one
    Object.assign(this.choices, { style, use, size, avoid, loras });
    this.choices.industry = industry;
  }
}

/** What was typed before the page was loaded again, or null. */
export function drafted() {
  try {
    return JSON.parse(sessionStorage.getItem(DRAFT));
  } catch {
    return null; // as if there were none
  }
}

/** A seed from which `number` pictures can be counted up. */
export function randomSeed(number = 1) {
  return crypto.getRandomValues(new Uint32Array(1))[0] % (MAX_SEED - number + 2);
}
