"""Puts what was measured into the documents, and draws it.

    python benchmarks/tables.py [--check]

Between ``<!-- NAME -->`` and ``<!-- end -->`` README.md, docs/performance.md and docs/memory.md hold what this script makes of
``results/*.json``, so that no figure there is anybody's memory. ``--check`` changes nothing, and fails where a document says
something else.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DOCUMENTS = (ROOT / "README.md", ROOT / "docs/performance.md", ROOT / "docs/memory.md")
PLOT = ROOT / "docs/images/performance.svg"

H100 = {"bf16": 989.0, "fp8": 1979.0, "bandwidth": 3350.0}
L4 = {"bf16": 121.0, "fp8": 242.5, "bandwidth": 300.0}
"""From NVIDIA's data sheets: dense TFLOP/s of the tensor cores, and GB/s of memory."""

TEXT_ENCODER = 2 * 35 * 2560 * (2 * 4096 + 2 * 1024 + 3 * 9728)
"""Bytes of the text encoder's layers: 35 of them, with projections for 32 heads of queries and 8 of keys and values each, and a
gated feed-forward of 9728."""

PRODUCTS = ("nvjet", "gemm", "cutlass", "fprop", "flash")
"""What the names of matrix products and attention have in them, as profiles spell them."""


def results(name: str) -> dict[str, Any]:
    """What a benchmark wrote; nothing where it has not run."""
    path = ROOT / f"benchmarks/results/{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def whole_pictures() -> tuple[dict[str, Any], str]:
    """What ``gpu_full.py`` measured of every size, and where. Of a size that was measured again, the newer figures:
    ``gpu_full_SIZE.json`` is such a run, kept under the name of its size.
    """
    full = results("gpu_full")
    if not full:
        return {}, ""
    sources = [f"all but the sizes below: {source('gpu_full')}"]
    for path in sorted((ROOT / "benchmarks/results").glob("gpu_full_*.json")):
        newer = results(path.stem)["pictures"]
        full["pictures"] |= newer
        sources.append(f"{', '.join(newer)}: {source(path.stem)}")
    if len(sources) == 1:
        return full, "Measured on: " + source("gpu_full") + "."
    return full, "Measured on:\n" + "\n".join(f"- {each}" for each in sources)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """As Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def seconds(value: float) -> str:
    return f"{value:.3f} s" if value < 10 else f"{value:.1f} s"


def pictures(full: dict[str, Any]) -> str:
    """Every contender at every size."""
    rows = []
    for size, found in full["pictures"].items():
        for name, row in found.items():
            if name == "floor":
                continue
            ours = name.startswith("hwaga")
            ratios = ", ".join(f"{value:.2f}×" for value in row["times_faster_than"].values()) if ours else ""
            rows.append(
                [
                    size,
                    name,
                    seconds(row["median"]),
                    seconds(row["p95"]),
                    seconds(row["first_seconds"]),
                    ratios,
                    f"{row['working_mib'] / 1024:.2f} GiB",
                    f"{row['joules']:.0f} J" if "joules" in row else "",
                ]
            )
    head = [
        "picture",
        "engine",
        "median",
        "p95",
        "first",
        "times faster than each of diffusers', in their order",
        "beside weights",
        "energy",
    ]
    return table(head, rows)


PEERS = {
    "diffusers": "diffusers",
    "diffusers, cuDNN and compiled blocks": "diffusers, compiled",
    "diffusers, the same in torchao's fp8": "compiled in torchao's fp8",
}
"""What ``gpu_full.py`` calls them, and what they are called where there is little room."""


def in_short(full: dict[str, Any]) -> str:
    """One picture at a time, for the README."""
    rows = []
    peers = [name for name in PEERS if any(name in found for found in full["pictures"].values())]
    for size, found in full["pictures"].items():
        if "at once" in size:
            continue
        both = found["hwaga bfloat16"], found["hwaga fp8"]
        engines = (*both, *(found.get(name) for name in peers))
        rows.append(
            [
                size.replace("x", "×"),
                *(f"{row['median']:.2f} s" if row else "" for row in engines),
                " / ".join(f"{row['psnr_db_to_diffusers']:.1f}" for row in both) + " dB",
            ]
        )
    head = ["size", "Hwaga", "Hwaga, fp8", *(PEERS[name] for name in peers), "pictures agree to, bfloat16 / fp8"]
    return table(head, rows)


def phases(full: dict[str, Any]) -> str:
    """Where this engine's time goes, and the floor."""
    rows = []
    for size, found in full["pictures"].items():
        for name in ("hwaga bfloat16", "hwaga fp8"):
            spent, floor = found[name]["phases"], found.get("floor", {}).get(name, {})
            rows.append(
                [
                    size,
                    name,
                    *(f"{spent[phase] * 1000:.0f} ms" for phase in ("encode", "denoise", "decode")),
                    f"{floor['median'] * 1000:.0f} ms" if floor else "",
                    f"{floor['denoise_times_floor']:.2f}×" if floor else "",
                ]
            )
    return table(["picture", "engine", "encode", "denoise", "decode", "floor of denoising", "denoise / floor"], rows)


def profile(name: str) -> str:
    """The kernels of a step."""
    found = results(name)
    rows = [
        [f"`{kernel}`", f"{row['microseconds_a_step'] / 1000:.2f} ms", f"{row['calls_a_step']:.0f}"]
        for kernel, row in found["kernels"].items()
        if row["microseconds_a_step"] >= 100
    ]
    rows.append(
        [
            "all, of the time that a step takes",
            f"{found['busy_milliseconds_a_step']:.1f} of {found['milliseconds_a_step']:.1f} ms",
            "",
        ]
    )
    return table(["kernel", "time a step", "calls a step"], rows)


def autoencoder(vae: dict[str, Any]) -> str:
    rows = []
    for case, found in vae["pictures"].items():
        ours, theirs = found["hwaga"], found["diffusers"]
        quality = (
            f"{ours['psnr_db']:.1f} / {theirs['psnr_db']:.1f} dB"
            if "psnr_db" in theirs
            else f"{ours['psnr_db']:.1f} dB"
        )
        rows.append(
            [
                case,
                f"{ours['ms']:.1f} ms",
                f"{theirs['ms']:.1f} ms",
                f"{ours['times_faster_than_diffusers']:.2f}×",
                f"{ours['peak_mib']} MiB",
                f"{theirs['peak_mib']} MiB",
                quality,
            ]
        )
    head = ["", "Hwaga", "diffusers", "times faster", "peak of Hwaga", "of diffusers", "PSNR to float32, ours / theirs"]
    return table(head, rows)


def operations(kernels: dict[str, Any]) -> str:
    tokens, found = next((name, row) for name, row in kernels.items() if isinstance(row, dict) and "operations" in row)
    rows = [
        [f"{name}", f"{row['fused_us']:.0f} µs", f"{row['reference_us']:.0f} µs", row["difference"]]
        for name, row in found["operations"].items()
        if isinstance(row, dict)
    ]
    return table([f"at {tokens}", "fused", "plain torch", "largest difference, of the largest value"], rows)


def sdxl(found: dict[str, Any]) -> str:
    """SDXL under caps of memory."""
    rows = []
    for cap, cases in found["caps_gib"].items():
        for case, row in cases.items():
            rows.append(
                [
                    cap,
                    case,
                    seconds(row["seconds"]),
                    f"{row['measured_gib']:.2f} GiB",
                    f"{row['foretold_gib']:.2f} GiB",
                    f"{row['moved_gib']:.1f} GiB",
                ]
            )
    return table(["cap, GiB", "pictures", "time", "peak, measured", "foretold", "weights moved"], rows)


def launches(found: dict[str, Any]) -> str:
    """What launches cost the host, and what that comes to in pictures."""
    rows = []
    for of in ("text encoder", "512x512"):
        for name, row in found[f"microseconds a call, {of}"].items():
            rows.append(
                [f"{name}, {of}", *(f"{row[way]['median']:.0f} µs" for way in ("jit", "ours", "without a launch"))]
            )
    for precision, title in (("full", "bfloat16"), ("fp8", "fp8")):
        cases = found[f"milliseconds, {precision}"]
        for phase in ("encode", "denoise", "total"):
            spent = (f"{cases[way][phase]['median']:.0f} ms" for way in ("jit", "ours"))
            rows.append([f"a picture of 512x512, {title}: {phase}", *spent, ""])
    return table(["", "through Triton's JIT", "past it", "all else"], rows)


def families(found: dict[str, Any]) -> str:
    """Both families at their default steps."""
    ours, diffusers = found["beside_diffusers"]["hwaga"], found["beside_diffusers"]["diffusers"]
    rows = [
        [name, seconds(row["median"]), f"{row['min']:.2f}–{row['max']:.2f} s"]
        for name, row in (("SDXL, 40 steps with guidance", ours), ("diffusers' SDXL, the same", diffusers))
    ]
    rows += [
        [name, seconds(row["median"]), f"{row['min']:.2f}–{row['max']:.2f} s"]
        for name, row in found["side_by_side"].items()
        if name != "times_faster"
    ]
    rows.append(
        ["Z-Image Turbo, times faster than SDXL", f"{found['side_by_side']['times_faster']['median']:.2f}×", ""]
    )
    return table(["1024×1024", "median", f"of {ours['runs']} runs"], rows)


def turns(found: dict[str, Any]) -> str:
    """Two models that take turns under caps of memory."""
    rows = []
    for cap, under in found["caps_gib"].items():
        for name, row in under["models"].items():
            least, most = row["measured_of_predicted"]
            rows.append(
                [
                    cap if cap == "none" else f"{cap} GiB",
                    name,
                    seconds(row["changed"]["median"]),
                    seconds(row["stayed"]["median"]),
                    f"{row['leaves_gib'][-1]:.1f} / {row['stays_gib'][-1]:.1f} GiB",
                    f"{row['predicted_gib']:.2f} GiB",
                    f"{least * 100:.1f}–{most * 100:.1f}%",
                ]
            )
    head = [
        "GPU memory",
        "draws",
        "after a change",
        "the next one",
        "of the other, leaves / stays",
        "peak, foretold",
        "measured of it",
    ]
    return table(head, rows)


def on_an_l4(full: dict[str, Any]) -> str:
    """What the data sheets foretell of an L4, from the profiles of an H100: products by TFLOP/s, all else by bandwidth."""
    rows = []
    for name, kind, engine in (("gpu_profile", "bf16", "hwaga bfloat16"), ("gpu_profile_fp8", "fp8", "hwaga fp8")):
        kernels = results(name)["kernels"]
        scaled = 0.0
        for kernel, row in kernels.items():
            product = any(mark in kernel for mark in PRODUCTS)
            attention = "fprop" in kernel or "flash" in kernel
            of = kind if product and not attention else "bf16" if product else "bandwidth"
            scaled += row["microseconds_a_step"] / 1e6 * H100[of] / L4[of]
        spent = full["pictures"]["1024x1024"][engine]["phases"]
        # A prompt takes as long as its weights take to be read, and never less than the host takes; products bind decoding.
        encode = max(TEXT_ENCODER / (L4["bandwidth"] * 1e9), spent["encode"])
        rest = encode + spent["decode"] * H100["bf16"] / L4["bf16"]
        rows.append(
            [engine, f"{spent['denoise'] + spent['encode'] + spent['decode']:.2f} s", f"{8 * scaled + rest:.1f} s"]
        )
    return table(["1024×1024, 8 steps", "H100, measured", "L4, a prediction"], rows)


def on_a_cpu(profile_: dict[str, Any]) -> str:
    """Seconds of a picture by kind of operation, and what its multiplications alone would take."""
    rows, kinds = [], list[str]()
    for name, found in profile_["pictures"].items():
        kinds = [kind for kind in found["seconds"] if kind != "whole"]
        whole, floor = found["seconds"]["whole"], found["floor"]
        spent = [found["seconds"][kind] for kind in kinds]
        rows.append([name, *(f"{value * 1e3:.0f} ms" for value in (*spent, whole, floor)), f"{whole / floor:.2f}×"])
    return table(["", *kinds, "whole, profiled", "multiplications alone", "whole / that"], rows)


CHANGES = {True: " with changes to the scripts or the code", False: "", None: " as it was told"}
"""What there was beside the commit; a machine that gets the files alone is told which one they are of."""


def source(name: str) -> str:
    """Device, versions and day of one result."""
    one = results(name)["where"]
    return (
        f"{one['gpu'] or one['cpu']}, torch {one['torch']}, commit {one['commit']}"
        f"{CHANGES[one['uncommitted_changes']]}, {one['date']}"
    )


def where(*names: str) -> str:
    return "Measured on: " + "; ".join(sorted({source(name) for name in names if results(name)})) + "."


def draw(full: dict[str, Any]) -> str:
    """Bars: seconds of every contender at every size of one picture."""
    sizes = [(size, found) for size, found in full["pictures"].items() if "at once" not in size]
    colours = ("#2f6f4f", "#6fb08a", "#6d727b", "#9a9fa8", "#c2c6cc")
    wide, bar, left = 760, 18, 92
    parts, y = [], 52
    for size, found in sizes:
        rows = [(name, row) for name, row in found.items() if name != "floor"]
        longest = max(row["median"] for _, row in rows)
        parts.append(f'<text x="8" y="{y + 30}" font-weight="600">{escape(size)}</text>')
        for (name, row), colour in zip(rows, colours, strict=False):
            length = row["median"] / longest * (wide - left - 300)
            parts.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar - 4}" fill="{colour}"/>')
            parts.append(f'<text x="{left + length + 6:.1f}" y="{y + 11}">{escape(name)}: {row["median"]:.3f} s</text>')
            floor = found.get("floor", {}).get(name)
            if floor:
                at = left + floor["median"] / longest * (wide - left - 300)
                parts.append(
                    f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y - 1}" y2="{y + bar - 3}" stroke="#f2c14e" stroke-width="2"/>'
                )
            y += bar
        y += 16
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {y}" width="{wide}" height="{y}" '
        'font-family="system-ui, sans-serif" font-size="12" role="img" aria-label="Seconds for one picture">'
        f'<rect width="{wide}" height="{y}" fill="#ffffff"/>'
        '<text x="8" y="20" font-size="14" font-weight="600">Seconds for one picture, prompt to pixels</text>'
        '<text x="8" y="38">Yellow: the products and the attention of its denoising alone, timed in the same run</text>'
    )
    return head + "".join(parts) + "</svg>\n"


def sections() -> dict[str, str]:
    """What stands between the marks of the document, by name."""
    (full, measured), made = whole_pictures(), dict[str, str]()
    if "floor" in str(full.get("pictures")):
        made["pictures"], made["phases"] = pictures(full), phases(full)
        made["where gpu_full"] = measured
        made["in short"] = in_short(full)
        made["l4"] = on_an_l4(full)
    made["where gpu_profile"] = where("gpu_profile", "gpu_profile_fp8", "gpu_vae")
    for name in ("gpu_profile", "gpu_profile_fp8"):
        made[name] = profile(name)
    if results("cpu_profile"):
        made["cpu_profile"], made["where cpu_profile"] = on_a_cpu(results("cpu_profile")), where("cpu_profile")
    if results("gpu_launch"):
        made["launches"], made["where gpu_launch"] = launches(results("gpu_launch")), where("gpu_launch")
    if results("gpu_vae"):
        made["vae"] = autoencoder(results("gpu_vae"))
    if results("gpu_sdxl"):
        made["sdxl"], made["families"] = sdxl(results("gpu_sdxl")), families(results("gpu_sdxl"))
        made["where gpu_sdxl"] = where("gpu_sdxl")
    if results("gpu_turns"):
        made["turns"] = turns(results("gpu_turns"))
    if results("gpu_kernels"):
        made["operations"] = operations(results("gpu_kernels"))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    made, wrong = sections(), []
    for document in DOCUMENTS:
        before = after = document.read_text(encoding="utf-8")
        for name in re.findall(r"<!-- (?!end)(.+?) -->", before):
            if name not in made:
                sys.exit(f"No result makes the section {name!r} of {document.name}.")
            between = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
            after = between.sub(lambda found, name=name: f"{found[1]}{made[name]}\n{found[2]}", after)
        texts = {document: after}
        if f"images/{PLOT.name}" in before:
            texts[PLOT] = draw(whole_pictures()[0])
        for path, text in texts.items():
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                wrong.append(path.name)
                if not arguments.check:
                    path.write_text(text, encoding="utf-8")
    if arguments.check and wrong:
        sys.exit(f"{', '.join(wrong)} say something else than the results. Run python benchmarks/tables.py.")
    print("Changed:", ", ".join(wrong) or "nothing")


if __name__ == "__main__":
    main()
