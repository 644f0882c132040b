// What the composer offers to choose from, as the server has it: styles, shapes, businesses, things to leave out.

import { find, h, icon, radios, renew } from "/ui/elements.js";
import { current, t, titled } from "/ui/words.js";

const EXAMPLES = ["realistic", "semi_realistic", "anime"]; // drawn by the bundled model: examples/style_thumbnails.py
const AVOIDABLE = ["text", "people", "hands", "logo", "clutter", "blur", "shadow"];

/** The choices of a server. `offer` is {status, styles, industries}, from the API. */
export class Choices {
  constructor(offer, { changed }) {
    this.offer = offer;
    this.changed = changed;
    this.style = "";
    this.use = "";
    this.size = null; // of restored settings, where no use stands for it
    this.avoid = [];
    this.loras = [];
    this.own = new Map(); // style → the address of the latest picture in it
    find("industry").addEventListener("change", changed);
  }

  get industry() {
    return find("industry").value;
  }

  set industry(name) {
    find("industry").value = name;
    if (find("industry").selectedIndex < 0) find("industry").value = "";
  }

  render() {
    this.#renderStyles();
    this.renderShapes();
    this.#renderIndustries();
    this.renderAvoid();
    this.renderLoras();
  }

  #renderStyles() {
    const { model } = this.offer.status;
    const has = (style) => !model.own_words_only || model.styles.includes(style.name);
    // One that settings brought back is shown even so: the server says what it thinks of it.
    const styles = this.offer.styles.filter((style) => has(style) || style.name === this.style);
    const choices = [
      { value: "", title: t("noStyle"), mark: icon("edit") },
      { value: "auto", title: t("autoStyle"), mark: icon("brush") },
      ...styles.map((style) => ({ value: style.name, title: titled(style)})),
    ];
    const row = find("styles");
    const far = row.scrollLeft;
    renew(
      row,
      ...radios("style", choices, {
        chosen: this.style,
        on: (value) => {
          this.style = value;
          this.changed();
        },
        face: (choice) => [this.#swatch(choice, model), h("span", { className: "choice-title" }, choice.title)],
      }),
    );
    row.scrollLeft = far;
    row.parentElement.querySelector(".hint")?.remove();
    const beyond = this.offer.styles.length - styles.length;
    if (beyond) row.after(h("p", { className: "hint" }, t("styleBeyond", { n: beyond })));
  }

  #swatch(choice, model) {
    const swatch = h("span", { className: "swatch", data: { style: choice.value }, "aria-hidden": "true" });
    const own = this.own.get(choice.value);
    // The examples are the bundled model's. Of another model, the latest picture of one's own says more.
    const example = EXAMPLES.includes(choice.value) && (model.name === "mini" || !own) ? `/ui/styles/${choice.value}.webp` : own;
    if (choice.mark) swatch.append(choice.mark);
    else if (example) swatch.append(h("img", { src: example, alt: "", width: 80, height: 80 }));
    else swatch.append([...choice.title][0]);
    return swatch;
  }

  /** Notes a picture as the latest in its style. */
  exemplify(style, address) {
    const old = this.own.get(style);
    if (old) URL.revokeObjectURL(old);
    this.own.set(style, address);
    this.#renderStyles();
  }

  /** The pixels that a use or "" stands for; `aspect` is what the server made of the use, where it is known. */
  pixels(use, aspect = null) {
    const { model, uses } = this.offer.status;
    const name = aspect || uses.find((entry) => entry.name === use)?.aspect;
    return model.aspects[name] || Object.values(model.aspects)[0];
  }

  renderShapes(aspect = null) {
    const { model, uses } = this.offer.status;
    const choices = [
      { value: "", title: t("autoShape"), pixels: this.pixels("") },
      ...uses
        .filter((use) => use.aspect in model.aspects)
        .map((use) => ({ value: use.name, title: SHORT[use.name]?.[current()] || titled(use), full: titled(use), pixels: this.pixels(use.name, use.name === this.use ? aspect : null) })),
    ];
    if (this.size) choices.push({ value: "exact", title: this.size.replace("x", "×"), pixels: this.size.split("x").map(Number) });
    const shown = JSON.stringify([choices, current()]);
    if (shown === this.shown) return;
    this.shown = shown;
    renew(
      find("shapes"),
      ...radios("use", choices, {
        chosen: this.size ? "exact" : this.use,
        on: (value) => {
          this.use = value === "exact" ? "" : value;
          if (value !== "exact") this.size = null;
          this.changed();
        },
        face: ({ title, full, pixels: [width, height] }) => [
          h("span", { className: "outline", "aria-hidden": "true", style: { "--ratio": width / height } }),
          h("span", { className: "choice-title", title: full }, title),
          h("span", { className: "pixels" }, `${width}×${height}`),
        ],
      }),
    );
  }

  #renderIndustries() {
    const select = find("industry");
    const chosen = select.value;
    const entries = this.offer.industries.map((entry) => [entry.name, titled(entry)]).sort((a, b) => a[1].localeCompare(b[1], current()));
    select.replaceChildren(
      ...[["", t("noIndustry")], ["auto", t("autoIndustry")], ...entries].map(([value, text]) => h("option", { value }, text)),
    );
    this.industry = chosen;
  }

  renderAvoid() {
    const names = [...AVOIDABLE, ...this.avoid.filter((name) => !AVOIDABLE.includes(name))];
    renew(
      find("avoid"),
      ...names.map((name) => {
        const box = h("input", {
          type: "checkbox", name: "avoid", value: name, checked: this.avoid.includes(name),
          on: {
            change: () => {
              this.avoid = box.checked ? [...this.avoid, name] : this.avoid.filter((other) => other !== name);
              this.changed();
            },
          },
        });
        return h("label", { className: "chip" }, box, h("span", {}, AVOIDABLE.includes(name) ? t(`avoid_${name}`) : name));
      }),
    );
  }

  /** LoRAs come with restored settings, and can be taken off. */
  renderLoras() {
    find("loras").replaceChildren(
      ...this.loras.map((name) =>
        h(
          "button",
          {
            type: "button", className: "chip chip-button", "aria-label": `${t("remove")}: LoRA ${name}`,
            on: {
              click: () => {
                this.loras = this.loras.filter((other) => other !== name);
                this.renderLoras();
                this.changed();
              },
            },
          },
          `LoRA ${name}`,
          icon("close"),
        ),
      ),
    );
  }
}

const SHORT = {
  feed: { en: "Feed", ko: "피드" },
  story: { en: "Story", ko: "스토리" },
  banner: { en: "Banner", ko: "배너" },
  poster: { en: "Poster", ko: "포스터" },
};
