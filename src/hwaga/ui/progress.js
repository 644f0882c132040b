// The jobs that wait or run: place in the queue, what emerges, time left, cancelling.

import * as api from "/ui/api.js";
import { announce, find, h, icon, toast } from "/ui/elements.js";
import { timeLeft } from "/ui/jobs.js";
import { explained } from "/ui/refusals.js";
import { changes as words, duration, t } from "/ui/words.js";

const SOFTEST = 7; // pixels of blur on the first preview; the last is shown as it is

export class Progress {
  #cards = new Map(); // id → card
  #failed = new Map(); // id → view

  constructor(jobs, { retry, sizeOf }) {
    this.jobs = jobs;
    this.retry = retry;
    this.sizeOf = sizeOf;
    this.section = find("work");
    jobs.addEventListener("work", () => this.#arrange());
    jobs.addEventListener("progress", ({ detail }) => this.#update(detail));
    jobs.addEventListener("ended", ({ detail }) => this.#ended(detail));
    words.addEventListener("language", () => {
      this.#cards.forEach((card) => card.element.remove());
      this.#cards.clear();
      this.#arrange();
    });
    setInterval(() => jobs.active.forEach((job) => this.#tell(job)), 1000);
  }

  #ended({ view, watched }) {
    if (!watched) return;
    if (view.status === "failed") this.#failed.set(view.id, view);
    if (view.status === "succeeded") announce(t("done", { prompt: view.request.prompt }));
    if (view.status === "cancelled") announce(t("cancelled"));
    this.#arrange();
  }

  #arrange() {
    const order = [...this.jobs.active.values()].sort((a, b) => a.view.created - b.view.created);
    const shown = new Set([...this.jobs.active.keys(), ...this.#failed.keys()]);
    for (const [id, card] of this.#cards) {
      if (!shown.has(id) || (this.#failed.has(id) && !card.failed)) {
        const held = card.element.contains(document.activeElement);
        card.element.remove();
        this.#cards.delete(id);
        if (held) find("gallery-title").focus();
      }
    }
    for (const view of this.#failed.values()) {
      if (!this.#cards.has(view.id)) this.#cards.set(view.id, this.#failure(view));
    }
    for (const job of order) {
      if (!this.#cards.has(job.view.id)) {
        this.#cards.set(job.view.id, this.#card(job));
        this.#update(job);
      }
    }
    const elements = [...this.#failed.keys(), ...order.map((job) => job.view.id)].map((id) => this.#cards.get(id).element);
    // Moved only where the order is another one: moving an element takes the focus from what is in it.
    if (elements.some((element, place) => this.section.children[place] !== element)) this.section.append(...elements);
    this.section.hidden = !elements.length;
    document.title = order.length ? `(${order.length}) Hwaga` : "Hwaga";
  }

  #card(job) {
    const { view } = job;
    const [width, height] = this.sizeOf(view);
    const frames = Array.from({ length: view.number }, () =>
      h("div", { className: "frame", style: { "--ratio": width / height } }, h("img", { alt: "", hidden: true })),
    );
    const state = h("p", { className: "state" });
    const bar = h("progress", { max: 1, value: 0, "aria-label": view.request.prompt });
    const cancel = h("button", { type: "button", className: "secondary", on: { click: () => this.#cancel(view.id, cancel) } }, t("cancel"));
    cancel.setAttribute("aria-label", `${t("cancel")}: ${view.request.prompt}`);
    const element = h(
      "article",
      { className: "job", data: { job: view.id } },
      h("div", { className: "frames" }, frames),
      h("div", { className: "job-text" }, h("p", { className: "job-prompt", title: view.request.prompt }, view.request.prompt), state, bar),
      cancel,
    );
    return { element, frames, state, bar, cancel, status: "" };
  }

  #failure(view) {
    const away = () => {
      this.#failed.delete(view.id);
      this.#arrange();
    };
    const element = h(
      "article",
      { className: "job failed", data: { job: view.id } },
      icon("alert"),
      h(
        "div",
        { className: "job-text" },
        h("p", { className: "job-prompt" }, view.request.prompt),
        h("p", { className: "error", role: "alert" }, `${t("failed")}. ${view.error ? explained(new api.Refusal(view.error.message, view.error)) : ""}`),
      ),
      h("button", { type: "button", className: "secondary", on: { click: () => (away(), this.retry(view)) } }, t("retry")),
      h("button", { type: "button", className: "icon-button", "aria-label": t("dismiss"), title: t("dismiss"), on: { click: away } }, icon("close")),
    );
    return { element, failed: true };
  }

  async #cancel(id, button) {
    button.disabled = true;
    try {
      await this.jobs.cancel(id);
    } catch (error) {
      button.disabled = false;
      toast(explained(error));
    }
  }

  #update(job) {
    const card = this.#cards.get(job.view.id);
    if (!card || card.failed) return;
    const { status, progress, number } = job.view;
    if (status === "running" && card.status === "queued") announce(t("started", { prompt: job.view.request.prompt }));
    card.status = status;
    card.element.classList.toggle("running", status === "running");
    card.bar.value = progress.total ? progress.step / progress.total : 0;
    card.bar.hidden = status === "queued";
    card.cancel.disabled = job.view.cancel_requested;
    const each = progress.total / number;
    card.frames.forEach((frame, place) => {
      const done = Math.min(1, (job.steps.get(place) || 0) / each) || 0;
      frame.classList.toggle("drawing", status === "running" && done < 1 && (place === 0 || job.steps.has(place) || job.steps.get(place - 1) >= each));
      frame.style.setProperty("--blur", `${(1 - done) * SOFTEST}px`);
      const preview = job.frames.get(place);
      if (preview && frame.preview !== preview) {
        frame.preview = preview;
        const image = frame.firstChild;
        api.show(image, api.decoded(preview)).then(() => (image.hidden = false), () => {});
      }
    });
    this.#tell(job);
  }

  #tell(job) {
    const card = this.#cards.get(job.view.id);
    if (!card || card.failed) return;
    const { status, progress, position, cancel_requested: stopping } = job.view;
    let text = t("starting");
    if (stopping) text = t("stopping");
    else if (status === "queued") text = position ? t("waiting", { n: position }) : t("waitingFirst");
    else if (progress.total && progress.step === progress.total) text = t("finishing");
    else if (progress.step) {
      const left = timeLeft(job);
      text = t("step", { n: progress.step, total: progress.total });
      if (left !== null) text += ` · ${t("left", { time: duration(left) })}`;
    }
    if (card.state.textContent !== text) card.state.textContent = text;
  }
}
