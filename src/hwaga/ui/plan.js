// The memory plan of a model as a picture: a bar for each phase, stacked by what lies in memory, against the budget.

import { h } from "/ui/elements.js";
import { bytes, known, t } from "/ui/words.js";

const PARTS = [["weights", "weights"], ["working", "workingMemory"], ["kept", "kept"]];

/** Elements that show a plan: {phases: [{name, vram: {weights, working, kept}, peak_vram_bytes}], vram_budget_bytes}. */
export function drawnPlan(plan) {
  const peak = (phase) => phase.peak_vram_bytes ?? PARTS.reduce((sum, [part]) => sum + (phase.vram[part] || 0), 0);
  const most = Math.max(plan.vram_budget_bytes || 0, ...plan.phases.map(peak)) * 1.04;
  const budget = plan.vram_budget_bytes;
  const row = (phase) => {
    const told = PARTS.filter(([part]) => phase.vram[part]).map(([part, key]) => `${t(key)} ${bytes(phase.vram[part])}`);
    return h(
      "li",
      {},
      h("span", { className: "phase" }, known(`phase_${phase.name}`) ? t(`phase_${phase.name}`) : phase.name),
      h("span", { className: "bar", title: told.join(" · "), "aria-hidden": "true" }, ...PARTS.map(([part]) => h("i", { className: `part-${part}`, style: { "--share": (phase.vram[part] || 0) / most } }))),
      h("span", { className: "peak" }, bytes(peak(phase))),
      h("span", { className: "hidden" }, told.join(", ")),
    );
  };
  return [
    h("ul", { className: "plan", style: budget ? { "--budget": budget / most } : {} }, ...plan.phases.map(row)),
    h("p", { className: "legend hint" }, ...PARTS.map(([part, key]) => h("span", {}, h("i", { className: `part-${part}` }), t(key))), budget ? h("span", {}, h("i", { className: "part-budget" }), t("budget", { size: bytes(budget) })) : null),
  ];
}
