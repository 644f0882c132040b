// A picture to look at closely: zoom by wheel, pinch, keys and double click; and a wipe over the picture that it started from.

import { h, icon } from "/ui/elements.js";
import { t } from "/ui/words.js";

const MOST = 12; // times the fitted size
const STEP = 1.4;

export class Stage {
  #scale = 1;
  #x = 0; // pixels of the screen from the middle
  #y = 0;
  #pointers = new Map();
  #pinch = 0;

  constructor() {
    this.after = h("img", { className: "stage-picture", alt: "", draggable: false });
    this.before = h("img", { className: "stage-picture stage-before", alt: "", draggable: false, hidden: true });
    this.handle = h("div", { className: "wipe-line", hidden: true, "aria-hidden": "true" }, h("span", {}, icon("compare")));
    this.sheet = h("div", { className: "sheet" }, this.after, this.before, this.handle);
    this.wipe = h("input", {
      type: "range", className: "wipe", min: "0", max: "100", value: "50", hidden: true,
      on: { input: () => this.#cut(Number(this.wipe.value)) },
    });
    this.level = h("output", { className: "zoom-level" }, "100%");
    const button = (name, label, run) => h("button", { type: "button", className: "icon-button", "aria-label": t(label), title: t(label), on: { click: run } }, icon(name));
    this.tools = h(
      "div",
      { className: "zoom" },
      button("minus", "zoomOut", () => this.zoom(1 / STEP)),
      h("button", { type: "button", className: "quiet", title: t("fit"), on: { click: () => this.reset() } }, this.level, h("span", { className: "hidden" }, t("fit"))),
      button("plus", "zoomIn", () => this.zoom(STEP)),
    );
    this.view = h("div", { className: "stage-view" }, this.sheet);
    this.element = h("div", { className: "stage" }, this.view, this.wipe, this.tools);
    this.#watch();
  }

  #watch() {
    const { view } = this;
    view.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / 400), event);
    }, { passive: false });
    view.addEventListener("dblclick", (event) => (this.#scale > 1 ? this.reset() : this.zoom(3, event)));
    view.addEventListener("pointerdown", (event) => {
      view.setPointerCapture(event.pointerId);
      this.#pointers.set(event.pointerId, event);
      this.#pinch = 0;
      if (!this.before.hidden && this.#pointers.size === 1 && this.#scale === 1) this.#cutAt(event);
    });
    view.addEventListener("pointermove", (event) => {
      const last = this.#pointers.get(event.pointerId);
      if (!last) return;
      this.#pointers.set(event.pointerId, event);
      if (this.#pointers.size === 2) {
        const [one, other] = [...this.#pointers.values()];
        const apart = Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
        if (this.#pinch) this.zoom(apart / this.#pinch, { clientX: (one.clientX + other.clientX) / 2, clientY: (one.clientY + other.clientY) / 2 });
        this.#pinch = apart;
      } else if (this.#scale > 1) {
        this.#x += event.clientX - last.clientX;
        this.#y += event.clientY - last.clientY;
        this.#place();
      } else if (!this.before.hidden) this.#cutAt(event);
    });
    for (const kind of ["pointerup", "pointercancel"]) {
      view.addEventListener(kind, (event) => {
        this.#pointers.delete(event.pointerId);
        this.#pinch = 0;
      });
    }
  }

  /** Zooms by a factor, so that the point under the pointer stays where it is. */
  zoom(factor, at = null) {
    const box = this.view.getBoundingClientRect();
    const scale = Math.min(MOST, Math.max(1, this.#scale * factor));
    const [x, y] = at ? [at.clientX - box.left - box.width / 2, at.clientY - box.top - box.height / 2] : [0, 0];
    this.#x = x - ((x - this.#x) * scale) / this.#scale;
    this.#y = y - ((y - this.#y) * scale) / this.#scale;
    this.#scale = scale;
    this.#place();
  }

  move(x, y) {
    this.#x -= x * 80;
    this.#y -= y * 80;
    this.#place();
  }

  get zoomed() {
    return this.#scale > 1;
  }

  reset() {
    this.#scale = 1;
    this.#place();
  }

  #place() {
    const far = (size) => (size * (this.#scale - 1)) / 2;
    const { width, height } = this.view.getBoundingClientRect();
    this.#x = Math.min(far(width), Math.max(-far(width), this.#x));
    this.#y = Math.min(far(height), Math.max(-far(height), this.#y));
    this.sheet.style.transform = `translate(${this.#x}px, ${this.#y}px) scale(${this.#scale})`;
    this.view.classList.toggle("zoomed", this.#scale > 1);
    this.level.textContent = `${Math.round(this.#scale * 100)}%`;
  }

  /** Gives the sheet the shape of the picture, as large as fits. */
  shape(width, height) {
    this.sheet.style.setProperty("--ratio", width / height);
  }

  compare(on) {
    this.before.hidden = this.wipe.hidden = this.handle.hidden = !on;
    this.wipe.setAttribute("aria-label", t("wipe"));
    this.handle.dataset.before = t("before");
    this.handle.dataset.after = t("after");
    if (on) {
      this.reset();
      this.#cut(50);
    }
  }

  #cutAt(event) {
    const box = this.sheet.getBoundingClientRect();
    this.#cut(Math.min(100, Math.max(0, ((event.clientX - box.left) / box.width) * 100)));
  }

  #cut(share) {
    this.wipe.value = share;
    this.sheet.style.setProperty("--wipe", `${share}%`);
  }
}
