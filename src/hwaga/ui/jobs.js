// The jobs on the server, as this page knows them. The server is the one that knows: a reload, another tab or a restart of the
// server change nothing but when we hear of it. Running jobs are listened to, a few at a time; the others are asked after.

import * as api from "/ui/api.js";

const PAGE = 30; // jobs a request
const STREAMS = 2; // browsers allow six connections to a server over HTTP/1.1, and all tabs share them
const BUSY = 1500; // ms between looks while jobs wait or run
const IDLE = 5000;
const TOLD = 25; // ms between the events of a job that are told in a row, to a page that comes back

const isOver = (view) => ["succeeded", "failed", "cancelled"].includes(view.status);

/**
 * Events: "work" when the jobs that wait or run have changed, "progress" (detail: the job) as one goes on, "ended" (detail: the
 * view) when one has ended, "removed" (detail: ids of pictures) when another tab has deleted some.
 */
export class Jobs extends EventTarget {
  active = new Map(); // id → {view, frames and steps by picture, since}
  #streams = new Map(); // id → AbortController
  #timer = 0;
  #looking = null;
  #tabs = typeof BroadcastChannel === "undefined" ? null : new BroadcastChannel("hwaga");

  start() {
    if (this.#tabs) {
      this.#tabs.onmessage = ({ data }) => {
        if (data.removed) this.forget(data.removed);
        this.look();
      };
    }
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) this.#hush();
      else this.look();
    });
    return this.look();
  }

  /** Asks the server how things are, now. */
  look() {
    clearTimeout(this.#timer);
    this.#looking ??= this.#refresh().finally(() => {
      this.#looking = null;
      if (!document.hidden) this.#timer = setTimeout(() => this.look(), this.active.size || !api.isOnline() ? BUSY : IDLE);
    });
    return this.#looking;
  }

  async #refresh() {
    try {
      const page = await api.get(`/v1/jobs?limit=${PAGE}`);
      const told = new Set(page.data.map((view) => view.id));
      this.absorb(page.data);
      for (const id of [...this.active.keys()].filter((id) => !told.has(id))) {
        try {
          this.absorb([await api.get(`/v1/jobs/${id}`)]);
        } catch (error) {
          if (error.status !== 404) throw error;
          this.#drop(id);
        }
      }
    } catch (error) {
      if (!(error instanceof api.Refusal)) throw error; // without a connection or a key, the page says so elsewhere
    }
  }

  /** The next page of the past, after a cursor. */
  async older(cursor) {
    const page = await api.get(`/v1/jobs?limit=${PAGE}${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`);
    this.absorb(page.data);
    return page;
  }

  /** Takes in what the server says of jobs. */
  absorb(views) {
    let changed = false;
    for (const view of views) {
      const job = this.active.get(view.id);
      if (isOver(view)) {
        if (job) this.#drop(view.id);
        this.#emit("ended", { view, watched: Boolean(job) });
        changed ||= Boolean(job);
      } else if (job) {
        const before = job.view;
        // A stream may have told of a later step than this answer, which was on its way.
        job.view = view.status === before.status && view.progress.step < before.progress.step ? { ...view, progress: before.progress } : view;
        if (JSON.stringify(job.view) !== JSON.stringify(before)) this.#emit("progress", job);
      } else {
        this.active.set(view.id, { view, frames: new Map(), steps: new Map(), since: null });
        changed = true;
      }
    }
    if (changed) this.#emit("work");
    this.#tune();
  }

  async submit(values, source, idempotencyKey) {
    return this.#taken(await api.makeJob(values, source, idempotencyKey));
  }

  /** Makes a picture again, from the settings inside it; with `seed` another one. */
  async again(image, seed, idempotencyKey) {
    const view = await api.makeAgain(image, { ...(seed !== undefined && { seed }), previews: true }, idempotencyKey);
    return this.#taken(view);
  }

  #taken(view) {
    this.absorb([view]);
    this.#tabs?.postMessage({});
    this.look();
    return view;
  }

  async cancel(id) {
    this.absorb([await api.remove(`/v1/jobs/${id}`).then((response) => response.json())]);
    this.#tabs?.postMessage({});
    this.look();
  }

  async deletePicture(id) {
    try {
      await api.remove(`/v1/images/${id}`);
    } catch (error) {
      if (error.status !== 404) throw error; // gone already, which is what was wanted
    }
    this.forget([id]);
    this.#tabs?.postMessage({ removed: [id] });
  }

  /** Says that pictures are no longer there. */
  forget(ids) {
    this.#emit("removed", ids);
  }

  #emit(kind, detail) {
    this.dispatchEvent(new CustomEvent(kind, { detail }));
  }

  #drop(id) {
    this.active.delete(id);
    this.#streams.get(id)?.abort();
    this.#streams.delete(id);
    this.#emit("work");
  }

  #hush() {
    clearTimeout(this.#timer);
    for (const stream of this.#streams.values()) stream.abort();
    this.#streams.clear();
  }

  /** Listens to those that run, oldest first, and then to those that wait. */
  #tune() {
    if (document.hidden) return;
    const order = [...this.active.values()].sort(
      (a, b) => (a.view.status === "queued") - (b.view.status === "queued") || a.view.created - b.view.created,
    );
    const wanted = new Set(order.slice(0, STREAMS).map((job) => job.view.id));
    for (const [id, stream] of this.#streams) {
      if (!wanted.has(id)) {
        stream.abort();
        this.#streams.delete(id);
      }
    }
    for (const id of wanted) if (!this.#streams.has(id)) this.#listen(id);
  }

  async #listen(id) {
    const stream = new AbortController();
    this.#streams.set(id, stream);
    this.active.get(id)?.steps.clear(); // what has happened is told anew
    try {
      await api.listen(id, (kind, data) => this.#hear(id, kind, data), stream.signal);
    } catch {
      // It is no longer there, or no longer ours: the next look finds out.
    } finally {
      if (this.#streams.get(id) === stream) this.#streams.delete(id);
    }
    if (!stream.signal.aborted) this.look();
  }

  #hear(id, kind, data) {
    const job = this.active.get(id);
    if (!job || isOver({ status: kind })) return;
    job.view = { ...job.view, status: data.status, position: data.position ?? null, ...(data.progress ? { progress: data.progress } : {}) };
    if (kind === "started") {
      job.since = null;
      job.frames.clear();
      job.steps.clear();
      job.view.progress = { step: 0, total: job.view.progress.total };
    }
    if (kind === "step") {
      const { step } = data.progress;
      // Time is counted from the first step that was seen to happen: not loading, not waiting, nor those told of afterwards in a row.
      const now = performance.now();
      if (!job.since || now - job.heard < TOLD) job.since = { step, at: now };
      job.heard = now;
      job.steps.set(data.picture, (job.steps.get(data.picture) || 0) + 1);
      if (data.preview) job.frames.set(data.picture, data.preview);
    }
    this.#emit("progress", job);
    if (kind === "started") this.#tune();
  }
}

/** Seconds that a running job still takes, by the pace of its steps; null before that can be told. */
export function timeLeft(job) {
  const { step, total } = job.view.progress;
  if (!job.since || step <= job.since.step) return null;
  return ((performance.now() - job.since.at) / 1000 / (step - job.since.step)) * (total - step);
}
