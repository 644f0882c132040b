"""``python -m training STAGE``: makes the bundled model, stage by stage or all at once."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch

from training import fit_preview
from training.ahead import compile_ahead
from training.assemble import assemble, write_card
from training.batches import Writer
from training.evaluate import evaluate
from training.fetch import fetch
from training.judge_file import write_judge
from training.phases import PHASES, judge, loras, train_phases
from training.recipe import Recipe
from training.session import Session, in_processes
from training.tokenizer import train_tokenizer

DATA = Path(__file__).parent / "data"

TOKENIZER_CAPTIONS = 200_000


def main() -> None:
    arguments = _parser().parse_args()
    recipe = Recipe.load("tiny" if arguments.tiny else arguments.recipe)
    arguments.run.mkdir(parents=True, exist_ok=True)
    stages = ALL if arguments.stage == "all" else (arguments.stage,)
    for stage in stages:
        _STAGES[stage](arguments, recipe)


ALL = ("fetch", "prepare", "tokenizer", "train", "assemble", "preview", "evaluate")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")

    def stage(name: str, help_: str) -> argparse.ArgumentParser:
        added = stages.add_parser(name, help=help_, description=help_)
        added.add_argument("--recipe", default="mini", help="a name in training/recipes, or a TOML file")
        added.add_argument("--tiny", action="store_true", help="the recipe of the tests: a few steps of everything")
        added.add_argument("--data", type=Path, default=DATA, help="packages and pack lie here")
        added.add_argument("--run", type=Path, default=DATA / "run", help="what is trained lies here")
        added.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        return added

    stage("fetch", "Fetch the npm packages that pictures and names come from.")
    stage("prepare", "Make the pack: the objects, their names, their pictures in three styles.")
    stage("tokenizer", "Learn the tokenizer from captions.")
    stage("captions", "Show some captions.").add_argument("--count", type=int, default=40)
    train = stage("train", "Train the phases that are not finished, or those named.")
    whole = stage("all", "Do every stage that leads from nothing to a model with its scores.")
    for added in (train, whole):
        added.add_argument("--seconds", type=float, help="end after so long, and go on where it ended the next time")
        added.add_argument("--processes", type=int, default=0, help="one for each GPU, if left out")
        added.add_argument("--eager", action="store_true", help="compile nothing")
    train.add_argument("phases", nargs="*", metavar="PHASE", help=", ".join(PHASES))
    stage("compile", "Compile what the transformer and its LoRAs run, while other phases have the GPU.")
    for name, help_ in (
        ("assemble", "Put the trained weights together as a checkpoint."),
        ("preview", "Fit the checkpoint's previews, and write them to its card."),
        ("evaluate", "Measure a checkpoint."),
    ):
        stage(name, help_).add_argument("--model", type=Path, default=DATA / "mini", help="the checkpoint's folder")
    stage("judge", "Write the judge as the benchmarks read it.").add_argument(
        "--judge", type=Path, default=Path("benchmarks/judge"), help="its folder"
    )
    whole.add_argument("--model", type=Path, default=DATA / "mini", help="the checkpoint's folder")
    for added in (stages.choices["evaluate"], whole):
        added.add_argument("--share", type=float, default=1.0, help="of the pictures that are made")
        added.add_argument("--reference", type=int, default=16, help="pictures to make with diffusers too; 0 for none")
        added.add_argument("--only", nargs="*", default=[], help="measures to take")
    return parser


def _session(arguments: argparse.Namespace, recipe: Recipe) -> Session:
    return Session(
        recipe,
        arguments.data / "pack",
        arguments.run,
        torch.device(arguments.device),
        compiles=arguments.device == "cuda" and not getattr(arguments, "eager", False),
    )


def _fetch(arguments: argparse.Namespace, _recipe: Recipe) -> None:
    fetch(arguments.data / "packages")


def _prepare(arguments: argparse.Namespace, _recipe: Recipe) -> None:
    if not (arguments.data / "pack" / "objects.json").exists():
        # Only this stage needs a renderer of vector pictures.
        from training.prepare import prepare

        torch.set_num_threads(1)
        print(prepare(arguments.data / "packages", arguments.data / "pack"))


def _tokenizer(arguments: argparse.Namespace, recipe: Recipe) -> None:
    session = _session(arguments, recipe)
    if not session.tokenizer.exists():
        captions = 2000 if arguments.tiny else TOKENIZER_CAPTIONS
        entries = train_tokenizer(
            session.tokenizer, session.things, recipe.text_encoder.vocabulary, captions, recipe.seed
        )
        print(f"{entries} entries")


def _captions(arguments: argparse.Namespace, recipe: Recipe) -> None:
    session = _session(arguments, recipe)
    writer = Writer(session.things, recipe, session.tokenizer, "look")
    for _ in range(arguments.count):
        scene = writer.maker.scene(writer.rng, 256, 256)
        print(f"{scene.kind:6}", writer.captioner.caption(writer.rng, scene))


def _train(arguments: argparse.Namespace, recipe: Recipe) -> None:
    session = _session(arguments, recipe)
    wanted = getattr(arguments, "phases", None) or PHASES
    known = (*PHASES, *map(loras.name_of, recipe.loras.styles))
    if unknown := set(wanted) - set(known):
        raise SystemExit(f"Unknown phases {', '.join(sorted(unknown))}; there are {', '.join(known)}.")
    processes = arguments.processes or (torch.cuda.device_count() if arguments.device == "cuda" else 1)
    in_processes(partial(train_phases, tuple(wanted), arguments.seconds), session, processes)


def _compile(arguments: argparse.Namespace, recipe: Recipe) -> None:
    session = _session(arguments, recipe)
    if not session.compiles:
        raise SystemExit("Nothing is compiled for a CPU. Run this where the transformer will be trained, on a GPU.")
    compile_ahead(session)


def _assemble(arguments: argparse.Namespace, recipe: Recipe) -> None:
    print(assemble(_session(arguments, recipe), arguments.model))


def _preview(arguments: argparse.Namespace, recipe: Recipe) -> None:
    factors, quality = fit_preview.fit(str(arguments.model))
    print(quality)
    write_card(_session(arguments, recipe), arguments.model, factors)


def _judge(arguments: argparse.Namespace, recipe: Recipe) -> None:
    session = _session(arguments, recipe)
    write_judge(judge.load(session), session.things, arguments.judge)


def _evaluate(arguments: argparse.Namespace, recipe: Recipe) -> None:
    evaluate(
        _session(arguments, recipe), arguments.model, share=arguments.share, reference=arguments.reference,
        only=arguments.only,
    )  # fmt: skip


_STAGES = {
    "fetch": _fetch,
    "prepare": _prepare,
    "tokenizer": _tokenizer,
    "captions": _captions,
    "train": _train,
    "compile": _compile,
    "assemble": _assemble,
    "judge": _judge,
    "preview": _preview,
    "evaluate": _evaluate,
}

if __name__ == "__main__":
    main()
