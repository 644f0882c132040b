// The finished pictures, newest first: endless, filtered by what the jobs say, and kept in step with the other tabs.

import * as api from "/ui/api.js";
import { find, h } from "/ui/elements.js";
import { changes as words, current, t, titled } from "/ui/words.js";

const PROMPTS = {
  en: ["a red apple on a yellow background", "a cat on a blue background", "a strawberry on a pink background"],
  ko: ["노란 배경의 빨간 사과", "파란 배경의 고양이", "딸기, 분홍색 배경"],
};

export class Gallery extends EventTarget {
  pictures = []; // {id, job, place, element}, newest first
  #known = new Map(); // id of a picture → the picture
  #removed = new Set();
  #cursor = null;
  #complete = false;
  #loading = false;
  #filter = { kind: "", style: "", text: "" };

  constructor(jobs, offer, { open, sizeOf, suggest }) {
    super();
    Object.assign(this, { jobs, offer, open, sizeOf, suggest });
    this.grid = find("grid");
    jobs.addEventListener("ended", ({ detail }) => this.#add(detail.view, detail.watched));
    jobs.addEventListener("removed", ({ detail }) => this.#remove(detail));
    words.addEventListener("language", () => this.#renderAll());
    this.near = new IntersectionObserver((entries) => entries.forEach((entry) => entry.isIntersecting && this.#draw(entry.target)), { rootMargin: "600px" });
    this.end = new IntersectionObserver(([entry]) => entry.isIntersecting && this.more(), { rootMargin: "1200px" });
    this.#renderAll();
  }

  /** Tells of pictures with what the server has now. */
  renew() {
    const { style } = this.#filter;
    this.#filtered({ style: this.offer.styles.some((entry) => entry.name === style) ? style : "" });
    this.#renderAll();
  }

  begin() {
    this.end.observe(find("sentinel"));
  }

  async more() {
    if (this.#complete || this.#loading) return;
    this.#loading = true;
    find("sentinel").textContent = t("loading");
    try {
      const page = await this.jobs.older(this.#cursor);
      this.#cursor = page.next;
      this.#complete = !page.next;
    } catch (error) {
      if (!(error instanceof api.Refusal)) throw error;
      setTimeout(() => this.#again(), 3000);
    } finally {
      this.#loading = false;
      find("sentinel").textContent = "";
      this.#renderState();
    }
    this.#again();
  }

  /** The observer only tells of changes: where the end is still in sight, as few pictures matched, it is looked at anew. */
  #again() {
    if (this.#complete) return;
    this.end.unobserve(find("sentinel"));
    this.end.observe(find("sentinel"));
  }

  #add(view, fresh) {
    const gone = this.pictures.filter((picture) => picture.job.id === view.id && !view.images.some((image) => image.id === picture.id));
    if (gone.length) this.#remove(gone.map((picture) => picture.id));
    // Each look at the server tells of all these jobs anew: what is known stays as it is.
    const come = view.images.map((image, place) => ({ image, place })).filter(({ image }) => !this.#known.has(image.id) && !this.#removed.has(image.id));
    for (const { image, place } of come) {
      const picture = { id: image.id, job: view, place };
      picture.element = this.#tile(picture, fresh);
      this.#known.set(image.id, picture);
      const before = this.pictures.findIndex((other) => newer(picture, other));
      const at = before < 0 ? this.pictures.length : before;
      this.grid.insertBefore(picture.element, this.pictures[at]?.element || null);
      this.pictures.splice(at, 0, picture);
      picture.element.hidden = !this.#matches(picture);
      this.near.observe(picture.element);
    }
    if (come.length) this.#renderState();
  }

  #tile(picture, fresh) {
    const [width, height] = this.sizeOf(picture.job);
    const { prompt } = picture.job.request;
    const label = picture.job.images.length > 1 ? `${prompt} (${t("of", { n: picture.place + 1, total: picture.job.images.length })})` : prompt;
    const button = h("button", { type: "button", className: "tile", "aria-label": label, on: { click: () => this.open(picture) } });
    button.append(h("img", { alt: "", hidden: true }), h("span", { className: "caption", "aria-hidden": "true" }, prompt));
    const element = h("li", { style: { "--ratio": width / height }, data: { picture: picture.id } }, button);
    if (fresh) element.classList.add("fresh");
    return element;
  }

  async #draw(element) {
    this.near.unobserve(element);
    const image = element.querySelector("img");
    try {
      const blob = await api.picture(`/v1/images/${element.dataset.picture}?thumbnail=1&format=webp`);
      await api.show(image, blob);
      image.hidden = false;
      element.style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
      element.classList.add("drawn");
      this.dispatchEvent(new CustomEvent("drawn", { detail: { picture: this.#known.get(element.dataset.picture), blob } }));
    } catch (error) {
      if (error.status === 404) this.#remove([element.dataset.picture]);
      else setTimeout(() => this.near.observe(element), 3000);
    }
  }

  #remove(ids) {
    for (const id of ids) {
      this.#removed.add(id);
      const picture = this.#known.get(id);
      if (!picture) continue;
      this.#known.delete(id);
      this.pictures.splice(this.pictures.indexOf(picture), 1);
      picture.element.remove();
    }
    this.dispatchEvent(new CustomEvent("removed", { detail: ids }));
    this.#renderState();
  }

  #matches({ job }) {
    const { kind, style, text } = this.#filter;
    const own = job.request.composed?.style || job.request.style || "";
    return (!kind || job.kind === kind) && (!style || own === style) && (!text || job.request.prompt.toLowerCase().includes(text));
  }

  /** The pictures that the filters leave, for going from one to the next. */
  get shown() {
    return this.pictures.filter((picture) => !picture.element.hidden);
  }

  #filtered(changes) {
    Object.assign(this.#filter, changes);
    for (const picture of this.pictures) picture.element.hidden = !this.#matches(picture);
    for (const button of find("filters").querySelectorAll("[aria-pressed]")) button.setAttribute("aria-pressed", String(button.value === this.#filter.kind));
    this.#renderState();
    this.#again();
  }

  #renderAll() {
    const kinds = [["", "all"], ["text2image", "fromWords"], ["image2image", "fromPicture"]];
    const styles = this.offer.styles.map((style) => h("option", { value: style.name }, titled(style)));
    find("filters").replaceChildren(
      h(
        "div",
        { className: "segments" },
        ...kinds.map(([value, key]) =>
          h("button", { type: "button", value, "aria-pressed": String(value === this.#filter.kind), on: { click: () => this.#filtered({ kind: value }) } }, t(key)),
        ),
      ),
      h("select", { "aria-label": t("style"), id: "filter-style", on: { change: ({ target }) => this.#filtered({ style: target.value }) } }, h("option", { value: "" }, t("allStyles")), ...styles),
      h("input", {
        type: "search", id: "filter-text", "aria-label": t("search"), placeholder: t("search"), value: this.#filter.text,
        on: { input: ({ target }) => this.#filtered({ text: target.value.trim().toLowerCase() }) },
      }),
    );
    find("filter-style").value = this.#filter.style;
    this.#renderState();
  }

  #renderState() {
    const empty = find("empty");
    const some = this.pictures.length > 0;
    const shown = this.pictures.some((picture) => !picture.element.hidden);
    find("filters").hidden = !some;
    empty.hidden = shown || !this.#complete;
    if (empty.hidden) return;
    if (some) {
      const clear = () => {
        this.#filtered({ kind: "", style: "", text: "" });
        this.#renderAll();
        find("filter-text").focus();
      };
      empty.replaceChildren(h("p", { className: "empty-title" }, t("noMatch")), h("button", { type: "button", className: "secondary", on: { click: clear } }, t("clearFilters")));
      return;
    }
    empty.replaceChildren(
      h("div", { className: "hanging", "aria-hidden": "true" }, ...["realistic", "semi_realistic", "anime"].map((style) => h("img", { src: `/ui/styles/${style}.webp`, alt: "", width: 88, height: 88 }))),
      h("p", { className: "empty-title" }, t("noPictures")),
      h("p", { className: "hint" }, t("noPicturesHint")),
      h("div", { className: "chips" }, ...PROMPTS[current()].map((prompt) => h("button", { type: "button", className: "chip chip-button", on: { click: () => this.suggest(prompt) } }, prompt))),
    );
  }
}

/** Whether one picture stands before another: the newer job first, and of a job its first picture. */
function newer(one, other) {
  if (one.job.id === other.job.id) return one.place < other.place;
  return one.job.created > other.job.created || (one.job.created === other.job.created && one.job.id > other.job.id);
}
