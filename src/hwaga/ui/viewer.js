// A finished picture in full: all its settings, what can be made from it, its files.

import * as api from "/ui/api.js";
import { randomSeed } from "/ui/composer.js";
import { ask, find, h, icon, toast } from "/ui/elements.js";
import { requestOf, settingsOf } from "/ui/picture_settings.js";
import { explained } from "/ui/refusals.js";
import { Stage } from "/ui/stage.js";
import { duration, moment, t, titled } from "/ui/words.js";

const SUFFIX = { png: "png", jpeg: "jpg", webp: "webp" };
const FITS = { crop: "cover", pad: "contain", stretch: "fill" };

export class Viewer {
  #picture = null;
  #settings = null; // what the PNG says that made it
  #png = null;

  constructor(jobs, gallery, composer, offer) {
    Object.assign(this, { jobs, gallery, composer, offer });
    this.dialog = find("viewer");
    this.dialog.addEventListener("keydown", (event) => this.#key(event));
    this.dialog.addEventListener("close", () => {
      const tile = this.#picture?.element.querySelector("button");
      this.#picture = this.#png = this.#settings = null;
      this.dialog.replaceChildren();
      // Where the way led to the form, the focus is there already.
      if (!find("composer").contains(document.activeElement)) tile?.focus();
    });
    gallery.addEventListener("removed", ({ detail }) => {
      if (this.#picture && detail.includes(this.#picture.id)) this.#leave();
    });
  }

  async open(picture) {
    this.#picture = picture;
    this.#png = this.#settings = null;
    this.stage = new Stage();
    this.#render();
    if (!this.dialog.open) this.dialog.showModal();
    this.dialog.querySelector(".viewer-close").focus();
    try {
      const png = await api.picture(`/v1/images/${picture.id}`);
      const settings = await settingsOf(png);
      if (this.#picture !== picture) return;
      this.#png = png;
      this.#settings = settings;
      await api.show(this.stage.after, png);
      this.stage.after.alt = picture.job.request.prompt;
      this.stage.shape(this.stage.after.naturalWidth, this.stage.after.naturalHeight);
      this.stage.element.classList.add("drawn");
      this.#renderFacts();
    } catch (error) {
      if (this.#picture !== picture) return;
      if (error.status === 404) {
        toast(t("gone"));
        this.jobs.forget([picture.id]);
      } else {
        toast(explained(error));
        this.dialog.close();
      }
    }
  }

  #render() {
    const { job } = this.#picture;
    const shown = this.gallery.shown;
    const at = shown.indexOf(this.#picture);
    const turn = (by, name, label) =>
      h("button", { type: "button", className: `icon-button turn turn-${name}`, "aria-label": t(label), title: t(label), disabled: !shown[at + by], on: { click: () => this.#turn(by) } }, icon(name));
    const act = (name, key, run, kind = "secondary") => h("button", { type: "button", className: kind, on: { click: run } }, icon(name), h("span", {}, t(key)));
    const compare = h("button", { type: "button", className: "secondary", "aria-pressed": "false", hidden: job.kind !== "image2image", on: { click: () => this.#compare(compare) } }, icon("compare"), h("span", {}, t("compare")));
    this.facts = h("dl", { className: "facts" });
    this.dialog.replaceChildren(
      h("div", { className: "viewer-stage" }, this.stage.element, turn(-1, "left", "previous"), turn(1, "right", "next")),
      h(
        "div",
        { className: "panel", tabIndex: -1 },
        h("button", { type: "button", className: "icon-button viewer-close", "aria-label": t("shut"), title: t("shut"), on: { click: () => this.dialog.close() } }, icon("close")),
        h("p", { className: "panel-prompt" }, job.request.prompt),
        h(
          "div",
          { className: "actions" },
          act("dice", "vary", () => this.#redraw(randomSeed()), "primary"),
          act("again", "again", () => this.#redraw()),
          act("edit", "edit", () => this.#edit()),
          act("picture", "asStart", () => this.#start()),
          compare,
          act("copy", "copy", () => this.#copy()),
        ),
        this.facts,
        h("div", { className: "downloads", role: "group", "aria-labelledby": "download-title" },
          h("p", { id: "download-title" }, icon("download"), t("download")),
          ...["png", "jpeg", "webp"].map((format) => h("button", { type: "button", className: "secondary", on: { click: ({ currentTarget }) => this.#download(format, currentTarget) } }, format === "webp" ? "WebP" : format.toUpperCase())),
          h("p", { className: "hint" }, t("withSettings")),
        ),
        act("trash", "delete", () => this.#delete(), "quiet delete"),
      ),
    );
    const [width, height] = this.gallery.sizeOf(job);
    this.stage.shape(width, height);
    this.#renderFacts();
  }

  /** The request that made the picture: its own word for it, or the job's until that is here. */
  get #request() {
    const { job, place } = this.#picture;
    const told = job.request;
    return this.#settings?.request || { ...told, ...(told.seed === undefined ? {} : { seed: told.seed + place }) };
  }

  #renderFacts() {
    const { job } = this.#picture;
    const request = this.#request;
    const { status, styles, industries } = this.offer;
    const title = (entries, name) => {
      const entry = entries.find((one) => one.name === name);
      return entry ? titled(entry) : name;
    };
    const composed = request.composed || {};
    const loras = [...(composed.loras || []), ...(request.loras || [])].map((lora) => (lora.weight === 1 ? lora.name : `${lora.name} × ${lora.weight}`));
    const facts = [
      ["style", title(styles, composed.style || request.style)],
      ["industry", title(industries, composed.industry || request.industry)],
      ["use", title(status.uses, request.use)],
      ["avoid", request.avoid?.join(", ")],
      ["size", request.width && `${request.width} × ${request.height}`],
      ["seed", request.seed],
      ["steps", request.steps],
      ["negative", [request.negative, composed.negative].filter(Boolean).join(", ")],
      ["guidance", request.guidance],
      ["sampler", request.sampler],
      ["strength", job.kind === "image2image" ? request.strength : null],
      ["lora", loras.join(", ")],
      ["model", this.#settings?.model],
      ["made", job.finished && moment(job.finished)],
      ["took", job.finished && job.started && duration(job.finished - job.started)],
    ].filter(([, value]) => value !== undefined && value !== null && value !== "");
    this.facts.replaceChildren(...facts.map(([key, value]) => h("div", {}, h("dt", {}, t(key)), h("dd", {}, String(value)))));
    if (composed.prompt && composed.prompt !== request.prompt) this.facts.append(h("div", { className: "whole" }, h("dt", {}, t("composed")), h("dd", {}, composed.prompt)));
  }

  #turn(by) {
    const shown = this.gallery.shown;
    const next = shown[shown.indexOf(this.#picture) + by];
    if (!next) return;
    const focused = this.dialog.contains(document.activeElement) ? [...document.activeElement.classList].find((name) => name.startsWith("turn-")) : null;
    this.open(next);
    if (focused) this.dialog.querySelector(`.${focused}:enabled`)?.focus();
    if (shown.indexOf(next) > shown.length - 5) this.gallery.more();
  }

  #leave() {
    const shown = this.gallery.shown;
    const next = shown.find((picture) => picture.job.created <= this.#picture.job.created) || shown.at(-1);
    if (next) this.open(next);
    else this.dialog.close();
  }

  #key(event) {
    const field = event.target.matches("input, select, textarea");
    if (event.ctrlKey || event.metaKey || event.altKey || field) return;
    const { stage } = this;
    const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (arrow && stage.zoomed) stage.move(...arrow);
    else if (arrow?.[0]) this.#turn(arrow[0]);
    else if (event.key === "+" || event.key === "=") stage.zoom(1.4);
    else if (event.key === "-") stage.zoom(1 / 1.4);
    else if (event.key === "0") stage.reset();
    else return;
    event.preventDefault();
  }

  async #source() {
    return this.#picture.job.kind === "image2image" ? api.picture(`/v1/jobs/${this.#picture.job.id}/source`) : null;
  }

  async #attempt(run) {
    try {
      await run();
    } catch (error) {
      if (!(error instanceof api.Refusal)) throw error;
      toast(explained(error));
    }
  }

  #redraw(seed) {
    return this.#attempt(async () => {
      await this.jobs.again(this.#picture.id, seed, api.newKey());
      this.dialog.close();
      toast(t("queuedAgain"));
      find("work").scrollIntoView({ block: "nearest" });
    });
  }

  #edit() {
    return this.#attempt(async () => {
      const source = await this.#source();
      const request = this.#request;
      this.dialog.close();
      this.composer.fill(request, source, this.#picture.job.model);
    });
  }

  #start() {
    return this.#attempt(async () => {
      const png = this.#png || (await api.picture(`/v1/images/${this.#picture.id}`));
      this.dialog.close();
      await this.composer.start.use(png);
      this.composer.focus();
    });
  }

  #compare(button) {
    return this.#attempt(async () => {
      const on = this.stage.before.hidden;
      if (on && !this.stage.before.src) {
        const fit = FITS[this.#request.fit] || "cover";
        this.stage.before.classList.add(`fit-${fit}`);
        await api.show(this.stage.before, await this.#source());
      }
      this.stage.compare(on);
      button.setAttribute("aria-pressed", String(on));
      if (on) this.stage.wipe.focus();
    });
  }

  async #copy() {
    const text = JSON.stringify(requestOf(this.#request), null, 2);
    try {
      await navigator.clipboard.writeText(text);
      toast(t("copied"));
    } catch {
      toast(t("notCopied")); // no permission, or a page without TLS
    }
  }

  #download(format, button) {
    return this.#attempt(async () => {
      button.disabled = true;
      try {
        const { id, job } = this.#picture;
        const blob = format === "png" && this.#png ? this.#png : await api.picture(`/v1/images/${id}?format=${format}`);
        const address = URL.createObjectURL(blob);
        const name = job.request.prompt.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 40) || "picture";
        h("a", { href: address, download: `${name}-${this.#request.seed ?? id.slice(0, 8)}.${SUFFIX[format]}` }).click();
        setTimeout(() => URL.revokeObjectURL(address), 60000);
      } finally {
        button.disabled = false;
        button.focus();
      }
    });
  }

  #delete() {
    return this.#attempt(async () => {
      const { id } = this.#picture;
      if (!(await ask(t("deleteTitle"), t("deleteText"), t("delete"), t("keep")))) return;
      await this.jobs.deletePicture(id);
      toast(t("deleted"));
    });
  }
}
