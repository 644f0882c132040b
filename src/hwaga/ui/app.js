// Where the page begins: it asks the server what there is to choose from, and puts the parts together.

import * as api from "/ui/api.js";
import { Composer, drafted } from "/ui/composer.js";
import { complain, debounced, find, toast } from "/ui/elements.js";
import { Gallery } from "/ui/gallery.js";
import { Jobs } from "/ui/jobs.js";
import { Progress } from "/ui/progress.js";
import { explained } from "/ui/refusals.js";
import { Settings } from "/ui/settings.js";
import { apply, changes as words, t } from "/ui/words.js";
import { Viewer } from "/ui/viewer.js";

const LOOK = 5000; // ms
const SOON = 1000; // ms, while the model is being loaded

/** What the server says of itself; its `model` is the one that was chosen of several. */
const told = async (name) => {
  const status = await api.get("/v1/status");
  return { ...status, model: status.models.find((model) => model.name === name) || status.model };
};

const offered = async (name) => {
  const status = await told(name);
  const paths = [`/v1/styles?model=${encodeURIComponent(status.model.name)}`, "/v1/industries"];
  const [styles, industries] = await Promise.all(paths.map((path) => api.get(path)));
  return { status, styles, industries };
};

/** Width and height that a job's pictures will have, as far as words tell. */
function sizes(offer) {
  return ({ request, model }) => {
    const { aspects } = offer.status.models.find(({ name }) => name === model) || offer.status.model;
    if (request.width && request.height) return [request.width, request.height];
    const use = offer.status.uses.find((entry) => entry.name === request.use);
    return aspects[request.aspect || use?.aspect] || Object.values(aspects)[0];
  };
}

let page = null;
let looking = 0;

async function begin() {
  let offer;
  try {
    offer = await offered(drafted()?.model);
  } catch (error) {
    if (!(error instanceof api.Refusal)) throw error;
    // Without a key the drawer has opened; without a connection it is tried again.
    if (error.status !== 401) setTimeout(begin, 2000);
    return;
  }
  const jobs = new Jobs();
  const sizeOf = sizes(offer);
  const composer = new Composer(jobs, offer, { remodel: (name) => remodel(name).catch((error) => (refused(error), composer.renew())) });
  const gallery = new Gallery(jobs, offer, {
    sizeOf,
    open: (picture) => viewer.open(picture),
    suggest: (prompt) => composer.fill({ prompt }),
  });
  const viewer = new Viewer(jobs, gallery, composer, offer);
  new Progress(jobs, { sizeOf, retry: (view) => retry(view, composer) });
  gallery.addEventListener("drawn", ({ detail: { picture, blob } }) => {
    const style = picture?.job.request.style;
    if (style && offer.status.model.name !== "mini" && !composer.choices.own.has(style)) composer.choices.exemplify(style, URL.createObjectURL(blob));
  });
  page = { jobs, offer, composer, gallery };
  tell(offer.status);
  jobs.addEventListener("work", debounced(400, look));
  await jobs.start();
  gallery.begin();
  document.body.classList.add("begun");
  looking = setTimeout(look, SOON);
}

function refused(error) {
  if (!(error instanceof api.Refusal)) throw error;
  toast(explained(error));
}

async function retry(view, composer) {
  try {
    const source = view.kind === "image2image" ? await api.picture(`/v1/jobs/${view.id}/source`) : null;
    composer.fill(view.request, source, view.model);
  } catch (error) {
    refused(error);
  }
}

/** What tells whether the server has come back as another one. */
const kind = ({ version, models, uses }) => JSON.stringify([version, models, uses]);

/** The parts share one offer, which takes on what there is now. */
async function remodel(name) {
  Object.assign(page.offer, await offered(name));
  page.composer.renew();
  page.gallery.renew();
}

async function renew() {
  await remodel(page.offer.status.model.name);
  toast(t("otherModel", { model: page.offer.status.model.title }));
}

async function look() {
  clearTimeout(looking);
  if (!document.hidden) {
    try {
      const status = await told(page.offer.status.model.name);
      if (kind(status) !== kind(page.offer.status)) await renew();
      tell(status);
    } catch {
      // The notice about the connection says it.
    }
  }
  looking = setTimeout(look, page.offer.status.ready ? LOOK : SOON);
}

function tell(status) {
  const place = find("health");
  place.classList.toggle("waiting", !status.ready);
  place.title = status.problem || status.model.title;
  place.textContent = !status.ready ? t("notReady") : status.queued ? t("busy", { n: status.queued }) : t("ready");
  if (page) page.offer.status = status;
}

api.changes.addEventListener("offline", () => {
  complain(find("offline"), t("offline"));
  find("health").textContent = "";
});
api.changes.addEventListener("online", () => {
  complain(find("offline"), "");
  toast(t("back"));
  if (page) look();
});
words.addEventListener("language", () => {
  if (page) tell(page.offer.status);
  if (!api.isOnline()) complain(find("offline"), t("offline"));
});

apply();
new Settings({ keyed: () => (page ? page.jobs.look() : begin()) });
begin();
