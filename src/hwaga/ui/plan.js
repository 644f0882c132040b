// The memory plans of the workers as pictures: a bar for each phase, stacked by what lies in memory, against the budget.

import { h } from "/ui/elements.js";
import { bytes, known, t } from "/ui/words.js";

const PARTS = ["weights", "brought", "work", "kept", "others"];

const sum = (phase) => PARTS.reduce((bytes, part) => bytes + phase[part], 0); // also where the device's memory is the machine's

/** Elements that show what GET /v1/plan answers: of each model in each worker, phases with bytes by what they are for, and its budget. */
export function drawnPlans({ data: plans }) {
  return plans.flatMap((plan) => [...(plans.length > 1 ? [h("p", { className: "hint" }, named(plan))] : []), drawn(plan), legend(plan)]);
}

/** The model and its device, what of it is away, and who makes room for it. */
function named(plan) {
  const leaves = plan.neighbours.filter((other) => other.leaves_bytes).map((other) => t("leaves", { model: other.model, size: bytes(other.leaves_bytes) }));
  return [plan.model, plan.device, plan.away_bytes && t("away", { size: bytes(plan.away_bytes) }), ...leaves].filter(Boolean).join(" · ");
}

function drawn(plan) {
  // A small model on a large machine would be a line: what there is then fills the width, and the budget is left to the words.
  const peak = Math.max(...plan.phases.map(sum), 1);
  const budget = plan.budget.device_bytes;
  const whole = (peak < budget / 8 ? peak : Math.max(peak, budget)) * 1.03;
  const row = (phase) => {
    const told = PARTS.filter((part) => phase[part]).map((part) => `${t(`plan_${part}`)} ${bytes(phase[part])}`);
    return h(
      "li",
      {},
      h("span", { className: "phase" }, known(`phase_${phase.name}`) ? t(`phase_${phase.name}`) : phase.name),
      h("span", { className: "bar", title: told.join(" · "), "aria-hidden": "true" }, ...PARTS.map((part) => h("i", { className: `part-${part}`, style: { "--share": phase[part] / whole } }))),
      h("span", { className: "peak" }, bytes(sum(phase))),
      h("span", { className: "hidden" }, told.join(", ")),
    );
  };
  return h("ul", { className: "plan", style: { "--budget": budget / whole } }, ...plan.phases.map(row));
}

function legend(plan) {
  const used = PARTS.filter((part) => plan.phases.some((phase) => phase[part]));
  const entry = (name, text) => h("span", {}, h("i", { className: `part-${name}` }), text);
  return h("p", { className: "legend hint" }, ...used.map((part) => entry(part, t(`plan_${part}`))), entry("budget", t("budget", { size: bytes(plan.budget.device_bytes) })));
}
