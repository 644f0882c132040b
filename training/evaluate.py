"""Measures a checkpoint through ``hwaga``, with fixed prompts and seeds: does it draw what it is asked for?

Beside every score stands the judge's own: what it says of the same scenes composed of the pack's pictures. A sample
of prompts is drawn by diffusers too, whose pictures have to be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from benchmarks.report import write_report
from PIL import Image
from torch import Tensor

from hwaga.engine import Engine
from hwaga.request import ImageRequest
from training.asked import UNKNOWN, Asked, Asker
from training.assemble import LORA_FILES
from training.colours import COLOURS
from training.compose import Arrangement, Textures, compose
from training.gallery import COLUMNS, SIDE, sheet_name
from training.pack import STYLES
from training.phases import judge as judge_phase
from training.phases.judge import Judge, chosen_colour, seen_by_judge
from training.scenes import NO_DYE
from training.session import Session

CORNER = 0.04
"""Share of the shorter side that a corner takes, by which a background is told."""

STRENGTHS = (0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)

AT_ONCE = 8


@dataclass(frozen=True)
class Verdict:
    """What is right about one picture. None where nothing was asked."""

    object_top_1: bool
    object_top_5: bool
    background: bool | None
    colour: bool | None
    count: bool | None
    place: bool | None

    @property
    def right(self) -> bool:
        return self.object_top_1 and False not in (self.background, self.colour, self.count, self.place)


class Evaluation:
    """One evaluation of one checkpoint."""

    def __init__(self, session: Session, model: Path, share: float) -> None:
        self.session, self.model, self.share = session, model, share
        self.judge: Judge = judge_phase.load(session)
        self.asker = Asker(session.things, session.recipe.sizes.standard[0])
        dtype = "float32" if session.device.type == "cpu" else "bfloat16"
        self.engine = Engine.open(str(model), device=str(session.device), dtype=dtype)

    def count(self, whole: int) -> int:
        return max(round(whole * self.share), 2)

    def measure(self, name: str, asked: Sequence[Asked]) -> dict[str, Any]:
        """Scores of prompts, and the judge's own on the same scenes; sheets of the pictures and of those that failed."""
        pictures = list(self.drawn(asked))
        verdicts = self.verdicts(asked, pictures)
        real = self.verdicts(asked, self.real(asked))
        failed = [place for place, verdict in enumerate(verdicts) if not verdict.right]
        self._sheet(name, asked, pictures, range(min(len(asked), 32)))
        self._sheet(f"{name}-failed", asked, pictures, failed[:32])
        scores = {"pictures": len(asked), **shares(verdicts), "judge_on_real": shares(real)}
        self.session.log("evaluate", measure=name, **scores)
        return scores

    def drawn(self, asked: Sequence[Asked], **changes: Any) -> Iterator[Tensor]:
        """Pictures ``[3, H, W]`` in [-1, 1]; each prompt's seed is its number."""
        styles = {style: card_style for style, (card_style, _) in LORA_FILES.items()}
        for start in range(0, len(asked), AT_ONCE):
            requests = [
                ImageRequest(
                    each.prompt,
                    width=each.size[0],
                    height=each.size[1],
                    seed=start + place,
                    style=styles.get(each.style),
                    **changes,
                )
                for place, each in enumerate(asked[start : start + AT_ONCE])
            ]
            for result in self.engine.generate_many(requests):
                yield _tensor(result.image)

    def real(self, asked: Sequence[Asked]) -> list[Tensor]:
        """The same scenes, composed."""
        things = self.session.things
        numbers = np.random.default_rng(1)
        found = []
        for style in STYLES:
            for place, each in enumerate(asked):
                if each.style == style:
                    # Only the objects that are needed: the whole pack is a gigabyte.
                    used = sorted(set(each.scene.things))
                    textures = Textures(self.session.pack, style, [things[i] for i in used], torch.device("cpu"))
                    placed = tuple(replace(p, thing=used.index(p.thing)) for p in each.scene.placed)
                    scene = replace(each.scene, placed=placed)
                    found.append((place, compose(textures, Arrangement.of([scene], numbers), *each.size)[0]))
        return [picture for _, picture in sorted(found, key=lambda pair: pair[0])]

    @torch.no_grad()
    def verdicts(self, asked: Sequence[Asked], pictures: Sequence[Tensor]) -> list[Verdict]:
        return [self._verdict(each, picture) for each, picture in zip(asked, pictures, strict=True)]

    def _verdict(self, asked: Asked, picture: Tensor) -> Verdict:
        scene = asked.scene
        background = nearest_corner_colour(picture) == scene.top if scene.says_background else None
        if scene.kind == "two":
            halves = [self._scores(half)[0] for half in _halves(picture)]
            pairs = list(zip(halves, scene.things, strict=True))
            first = all(int(scores.argmax()) == thing for scores, thing in pairs)
            five = all(thing in scores.topk(min(5, len(scores))).indices.tolist() for scores, thing in pairs)
            return Verdict(first, five, background, None, None, None)
        objects, colours, counts = self._scores(_middle(picture))
        thing = scene.things[0]
        dye = scene.placed[0].dye
        five = thing in objects.topk(min(5, len(objects))).indices.tolist()
        return Verdict(
            int(objects.argmax()) == thing,
            five,
            background,
            int(chosen_colour(colours[None])) == dye if dye != NO_DYE else None,
            int(counts.argmax()) + 1 == len(scene.placed) if scene.kind == "count" else None,
            _stands_right(scene.kind, scene.placed[0].x, picture),
        )

    def _scores(self, picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        objects, colours, counts = self.judge(seen_by_judge(picture[None].to(self.session.device)))
        return objects[0].cpu(), colours[0].cpu(), counts[0].cpu()

    def _sheet(self, name: str, asked: Sequence[Asked], pictures: Sequence[Tensor], places: Sequence[int]) -> None:
        """Pictures side by side, and their prompts in a file beside; what lay there before goes."""
        prompts = self.session.run / "sheets" / f"{sheet_name(name)}.txt"
        if not places:
            prompts.unlink(missing_ok=True)
            prompts.with_suffix(".png").unlink(missing_ok=True)
            return
        small = [F.interpolate(pictures[place][None], (SIDE, SIDE), mode="area")[0] for place in places]
        self.session.sheet(sheet_name(name), torch.stack(small), COLUMNS)
        text = "\n".join(asked[place].prompt for place in places)
        prompts.write_text(text + "\n", encoding="utf-8")


def evaluate(session: Session, model: Path, *, share: float, reference: int, only: Sequence[str] = ()) -> Path:
    """Measures a checkpoint and writes ``mini_scores.json`` among the results of the benchmarks.

    Args:
        share: of the pictures of the full evaluation, for a look.
        reference: pictures to draw with diffusers too.
        only: measures to take; all if empty.
    """
    evaluation = Evaluation(session, model, share)
    asker, count = evaluation.asker, evaluation.count
    sizes = session.recipe.sizes.all

    def of_size(size: tuple[int, int]) -> list[Asked]:
        return asker.combinations(count(32), f"size {size}", among=asker.everyday, size=size)

    def of_style(style: str) -> list[Asked]:
        return asker.combinations(count(256), style, style=style)

    prompts: dict[str, Callable[[], list[Asked]]] = {
        "combinations": lambda: asker.combinations(count(512), "combinations"),
        "everyday": lambda: asker.combinations(count(128), "everyday", among=asker.everyday),
        "pairs": lambda: asker.pairs(count(128)),
        "dyed": lambda: asker.dyed(count(128)),
        "unseen_phrasing": lambda: asker.combinations(count(128), "unseen", among=asker.everyday, unseen=True),
        "written": lambda: asker.written()[: count(120)],
        "counted": lambda: asker.counted(count(96)),
        "placed": lambda: asker.placed(count(96)),
        **{f"style_{style}": partial(of_style, style) for style in session.recipe.loras.styles},
        **{f"size_{size[0]}x{size[1]}": partial(of_size, size) for size in sizes[1:]},
    }
    others: dict[str, Callable[[], dict[str, Any]]] = {
        "autoencoder": lambda: fidelity(evaluation),
        "image_to_image": lambda: image_to_image(evaluation),
        "unknown_words": lambda: unknown_words(evaluation),
        "diffusers": lambda: agreement(evaluation, reference),
    }
    if unknown := set(only) - {*prompts, *others}:
        raise SystemExit(f"Unknown measures {', '.join(sorted(unknown))}; there are {', '.join([*prompts, *others])}.")
    wanted = [name for name in (*prompts, *others) if not only or name in only]
    wanted = [name for name in wanted if reference or name != "diffusers"]
    if not wanted:
        raise SystemExit("Nothing is left to measure: diffusers draws --reference pictures, and that is 0.")
    scores: dict[str, Any] = {}
    with evaluation.engine:
        for name in wanted:
            if name in prompts:
                scores[name] = evaluation.measure(name, prompts[name]())
            else:
                scores[name] = others[name]()
                session.log("evaluate", measure=name, **scores[name])
            # After each: all of them take an hour, and what has been measured stays if it is stopped.
            part = write_report("mini_scores_part", {"share": share, "scores": scores})
    part.unlink()
    return write_report("mini_scores", {"share": share, "scores": scores})


def shares(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """The share that is right in each respect, of those in which it was asked for."""
    found = {}
    for name in ("object_top_1", "object_top_5", "background", "colour", "count", "place"):
        values = [getattr(verdict, name) for verdict in verdicts if getattr(verdict, name) is not None]
        if values:
            found[name] = round(sum(values) / len(values), 3)
    found["all_right"] = round(sum(verdict.right for verdict in verdicts) / len(verdicts), 3)
    return found


def nearest_corner_colour(picture: Tensor) -> int:
    """The number of the colour that the corners of ``[3, H, W]`` are nearest to, in RGB."""
    side = max(round(CORNER * min(picture.shape[1:])), 1)
    ends = slice(None, side), slice(-side, None)
    mean = torch.stack([picture[:, a, b].flatten(1).mean(1) for a in ends for b in ends]).mean(0)
    colours = torch.tensor([colour.rgb for colour in COLOURS]) / 127.5 - 1
    return int((colours - mean).square().sum(1).argmin())


def _stands_right(kind: str, x: float, picture: Tensor) -> bool | None:
    """Whether what differs from the background is at the side asked for, or as small or large."""
    if kind not in ("side", "small", "large"):
        return None
    corner = picture[:, :4, :4].mean((1, 2))
    different = (picture - corner[:, None, None]).abs().amax(0) > 0.25
    if not different.any():
        return False
    columns, rows = (torch.nonzero(different.any(axis)).flatten() for axis in (0, 1))
    middle = float(columns[0] + columns[-1]) / 2 / picture.shape[2]
    extent = max(int(columns[-1] - columns[0]), int(rows[-1] - rows[0])) / min(picture.shape[1:])
    if kind == "side":
        return (middle < 0.5) == (x < 0.5) and abs(middle - 0.5) > 0.1
    return extent < 0.55 if kind == "small" else extent > 0.75


def _middle(picture: Tensor) -> Tensor:
    """The square in the middle."""
    height, width = picture.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return picture[:, top : top + side, left : left + side]


def _halves(picture: Tensor) -> tuple[Tensor, Tensor]:
    """The squares that two objects side by side stand in."""
    side = picture.shape[2] // 2
    top = (picture.shape[1] - side) // 2
    return picture[:, top : top + side, :side], picture[:, top : top + side, side:]


def fidelity(evaluation: Evaluation) -> dict[str, Any]:
    """PSNR of composed pictures that went through the autoencoder and came back, for each style."""
    found, asker = {}, evaluation.asker
    next(evaluation.drawn(asker.combinations(1, "autoencoder")))  # its weights are then where they are needed
    model = evaluation.engine._opened().model
    for style in STYLES:
        real = evaluation.real(asker.combinations(evaluation.count(64), f"autoencoder {style}", style=style))
        errors = []
        for picture in real:
            with torch.inference_mode():
                latents = model.encode_pixels(picture.to(evaluation.session.device), None)
                again = model.decode_latents(latents).clamp(-1, 1).cpu()
            errors.append(10 * torch.log10(4 / (again - picture).square().mean()))
        found[style] = round(torch.stack(errors).mean().item(), 2)
    return {"psnr": found}


def image_to_image(evaluation: Evaluation) -> dict[str, Any]:
    """From a composed picture to another object on another background: what has become of both at each strength."""
    asker = evaluation.asker
    wanted = asker.combinations(evaluation.count(32), "to", among=asker.everyday)
    start = asker.combinations(len(wanted), "from", among=asker.everyday)
    sources = [_image(picture) for picture in evaluation.real(start)]
    scores = {}
    for strength in STRENGTHS:
        pictures = []
        for place, (each, source) in enumerate(zip(wanted, sources, strict=True)):
            request = ImageRequest(
                each.prompt, width=each.size[0], height=each.size[1], seed=place, image=source, strength=strength
            )
            pictures.append(_tensor(evaluation.engine.generate(request).image))
        evaluation._sheet(f"image-to-image-{strength}", wanted, pictures, range(min(len(wanted), 16)))
        scores[str(strength)] = shares(evaluation.verdicts(wanted, pictures))
        unlike = [t.scene.things != s.scene.things for t, s in zip(wanted, start, strict=True)]
        old = evaluation.verdicts([replace(s, prompt=w.prompt) for s, w in zip(start, wanted, strict=True)], pictures)
        scores[str(strength)]["still_the_source"] = round(
            sum(v.object_top_1 for v, u in zip(old, unlike, strict=True) if u) / max(sum(unlike), 1), 3
        )
    return {"pictures": len(wanted), "strengths": scores}


def unknown_words(evaluation: Evaluation) -> dict[str, Any]:
    """Prompts for what it does not know: how sure the judge is that there is some object, and how plain the corners are."""
    square = evaluation.asker.square
    scene = evaluation.asker.combinations(1, "unknown")[0].scene
    asked = [Asked(prompt, scene, square) for prompt in UNKNOWN]
    pictures = list(evaluation.drawn(asked))
    evaluation._sheet("unknown-words", asked, pictures, range(len(asked)))
    with torch.no_grad():
        sure = [evaluation._scores(picture)[0].softmax(0).max().item() for picture in pictures]
    side = max(square[0] // 25, 2)
    rough = [picture[:, :side, :side].flatten(1).std(1).mean().item() for picture in pictures]
    return {
        "pictures": len(asked),
        "judge_is_sure": round(sum(value > 0.5 for value in sure) / len(sure), 3),
        "plain_corners": round(sum(value < 0.05 for value in rough) / len(rough), 3),
    }


def agreement(evaluation: Evaluation, count: int) -> dict[str, Any]:
    """The first combinations, drawn by diffusers too, from the same seeds, on the CPU in float32."""
    from diffusers import ZImagePipeline

    asked = evaluation.asker.combinations(max(evaluation.count(512), count), "combinations")[:count]
    pipeline = ZImagePipeline.from_pretrained(evaluation.model, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    theirs = []
    for place, each in enumerate(asked):
        image = pipeline(
            prompt=each.prompt,
            width=each.size[0],
            height=each.size[1],
            num_inference_steps=evaluation.session.recipe.sampler_steps,
            guidance_scale=0.0,
            generator=torch.Generator().manual_seed(place),
        ).images[0]
        theirs.append(_tensor(image))
    with Engine.open(str(evaluation.model), device="cpu", dtype="float32") as engine:
        evaluation.engine = engine
        ours = list(evaluation.drawn(asked))
    differences = [((a - b).abs().max() * 127.5).round().item() for a, b in zip(ours, theirs, strict=True)]
    same = evaluation.verdicts(asked, ours) == evaluation.verdicts(asked, theirs)
    return {"pictures": len(asked), "largest_difference_of_255": max(differences), "same_verdicts": same}


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image.convert("RGB"), np.float32)).permute(2, 0, 1) / 127.5 - 1


def _image(picture: Tensor) -> Image.Image:
    array = ((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(array)
