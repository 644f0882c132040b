// The server's HTTP API: requests with the key, errors as they are told, events as they come, pictures as addresses.

export const changes = new EventTarget();

let online = true;
let key = "";
try {
  key = localStorage.getItem("hwaga.key") || "";
} catch {
  // Without storage the key is asked for each time.
}

export const hasKey = () => Boolean(key);
export const isOnline = () => online;

export function setKey(secret) {
  key = secret;
  try {
    if (secret) localStorage.setItem("hwaga.key", secret);
    else localStorage.removeItem("hwaga.key");
  } catch {
    // It holds until the page is closed.
  }
}

/** What the server refused, or the lack of a server (code "offline"). */
export class Refusal extends Error {
  constructor(message, { status = 0, code = null, param = null, seconds = 0 } = {}) {
    super(message);
    Object.assign(this, { status, code, param, seconds });
  }
}

function reached(now) {
  if (now === online) return;
  online = now;
  changes.dispatchEvent(new Event(now ? "online" : "offline"));
}

async function send(path, { method = "GET", headers = {}, body, signal } = {}) {
  if (key) headers = { ...headers, Authorization: `Bearer ${key}` };
  let response;
  try {
    response = await fetch(path, { method, headers, body, signal });
  } catch (error) {
    if (signal?.aborted) throw error;
    reached(false);
    throw new Refusal("The server cannot be reached.", { code: "offline" });
  }
  reached(true);
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  const { message = response.statusText, code = null, param = null } = told.error || {};
  if (response.status === 401) changes.dispatchEvent(new Event("key"));
  throw new Refusal(message, { status: response.status, code, param, seconds: Number(response.headers.get("Retry-After") || 0) });
}

export const get = async (path, signal) => (await send(path, { signal })).json();

export const remove = (path) => send(path, { method: "DELETE" });

export const post = async (path, values, signal) =>
  (await send(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(values), signal })).json();

export const picture = async (path, signal) => (await send(path, { signal })).blob();

export function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Makes a job. With the same idempotency key a second try gives the first one's job. */
export async function makeJob(values, source, idempotencyKey) {
  const headers = { "Idempotency-Key": idempotencyKey };
  let body;
  if (source) {
    body = new FormData();
    for (const [name, value] of Object.entries(values)) for (const one of [value].flat()) body.append(name, String(one));
    body.append("image", source, "start");
  } else {
    headers["Content-Type"] = "application/json";
    body = JSON.stringify(values);
  }
  return (await send("/v1/jobs", { method: "POST", headers, body })).json();
}

/** Makes a job of the settings inside a picture: the server has them all, and what it started from. */
export async function makeAgain(image, values, idempotencyKey) {
  const headers = { "Content-Type": "application/json", "Idempotency-Key": idempotencyKey };
  return (await send(`/v1/images/${image}/again`, { method: "POST", headers, body: JSON.stringify(values) })).json();
}

const SILENCE = 45000; // ms: the server sends a sign of life every 15 s

/** The events of a job, across lost connections, until it ends or `signal` says stop. */
export async function listen(job, onEvent, signal) {
  let last = "";
  let pause = 500;
  while (!signal.aborted) {
    const attempt = new AbortController();
    const stop = () => attempt.abort();
    signal.addEventListener("abort", stop, { once: true });
    let watch = setTimeout(stop, SILENCE);
    try {
      const headers = last ? { "Last-Event-ID": last } : {};
      const response = await send(`/v1/jobs/${job}/events`, { headers, signal: attempt.signal });
      for await (const event of parsed(response.body, () => {
        clearTimeout(watch);
        watch = setTimeout(stop, SILENCE);
      })) {
        if (signal.aborted) return;
        last = event.id || last;
        pause = 500;
        onEvent(event.kind, event.data);
        if (["succeeded", "failed", "cancelled"].includes(event.kind)) return;
      }
    } catch (error) {
      if (error instanceof Refusal && error.status >= 400 && error.status < 500 && error.status !== 429) throw error;
    } finally {
      clearTimeout(watch);
      attempt.abort();
      signal.removeEventListener("abort", stop);
    }
    await new Promise((resume) => setTimeout(resume, pause));
    pause = Math.min(pause * 2, 8000);
  }
}

async function* parsed(stream, alive) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      alive();
      text += value;
      const blocks = text.split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const fields = {};
        for (const line of block.split("\n")) {
          const colon = line.indexOf(": ");
          if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 2);
        }
        if (fields.data) yield { id: fields.id, kind: fields.event, data: JSON.parse(fields.data) };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Shows a blob in an <img>; its address is given back once it is decoded. */
export function show(image, blob) {
  const address = URL.createObjectURL(blob);
  return new Promise((resolve, reject) => {
    image.onload = () => (URL.revokeObjectURL(address), resolve(image));
    image.onerror = () => (URL.revokeObjectURL(address), reject(new Refusal("This picture cannot be shown.")));
    image.src = address;
  });
}

/** A base64 picture, as events carry them. */
export function decoded(text) {
  return new Blob([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], { type: "image/jpeg" });
}
