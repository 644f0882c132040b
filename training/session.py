"""What every phase of a training shares: the recipe, the folders, the device, its place among several GPUs, and the log."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.compose import Textures
from training.optimizer import MuonAdam
from training.pack import Thing, read_things
from training.recipe import Phase, Recipe

PART = 15 * 2**20
"""Bytes of a file of weights at most, so that they can be carried where large files cannot."""


@dataclass
class Session:
    """One process of a training.

    Attributes:
        pack: the folder that ``prepare`` wrote.
        run: where everything that is trained goes.
        rank, world: this process's number among all; each has a GPU of its own.
    """

    recipe: Recipe
    pack: Path
    run: Path
    device: torch.device
    rank: int = 0
    world: int = 1
    compiles: bool = False
    _hosts: dist.ProcessGroup | None = field(default=None, repr=False)
    _textures: dict[str, Textures] = field(default_factory=dict, repr=False)

    @cached_property
    def things(self) -> tuple[Thing, ...]:
        return read_things(self.pack)

    def textures(self, style: str) -> Textures:
        """The pack's pictures of a style on the device, read once."""
        if style not in self._textures:
            self._textures[style] = Textures(self.pack, style, self.things, self.device)
        return self._textures[style]

    @property
    def dtype(self) -> torch.dtype:
        """Of the networks' weights while they are trained: as inference has them on a GPU, exact on a CPU."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @property
    def tokenizer(self) -> Path:
        return self.run / "tokenizer"

    def prepare(self) -> None:
        """Lets a GPU be quick; before anything is trained or compiled in this process."""
        if self.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.allow_tf32 = True
            torch._dynamo.config.recompile_limit = 64

    def log(self, phase: str, **values: object) -> None:
        """Adds a line to ``log.jsonl`` and shows it."""
        if self.rank:
            return
        entry = {"phase": phase, **{key: _short(value) for key, value in values.items()}}
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with (self.run / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": now, **entry}) + "\n")
        print(" ".join(f"{key}={value}" for key, value in entry.items()), flush=True)

    def sheet(self, name: str, pictures: Tensor, columns: int = 8) -> None:
        """Saves pictures ``[n, 3, H, W]`` in [-1, 1] side by side as ``sheets/NAME.png``."""
        if self.rank:
            return
        path = self.run / "sheets" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        bytes_ = ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        height, width = bytes_.shape[1:3]
        sheet = Image.new("RGB", (columns * width, -(-len(bytes_) // columns) * height))
        for place, picture in enumerate(bytes_):
            sheet.paste(Image.fromarray(picture), (place % columns * width, place // columns * height))
        sheet.save(path)

    def agreed(self, value: float) -> float:
        """The first process's value, in all of them; it does not pass through the GPUs."""
        if self.world == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(shared, 0, group=self._hosts)
        return float(shared)

    def share_gradients(self, optimizers: Sequence[MuonAdam]) -> None:
        """Makes gradients the mean over all processes."""
        if self.world == 1:
            return
        gradients = [gradient for optimizer in optimizers for gradient in optimizer.gradients()]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        pieces = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(pieces, gradients, strict=True)])

    def save(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Writes weights as ``NAME-1.safetensors`` and so on, in bfloat16, in files that are small enough to carry."""
        if self.rank:
            return
        parts: list[dict[str, Tensor]] = [{}]
        size = 0
        for key, value in weights.items():
            small = value.detach().to(torch.bfloat16) if value.is_floating_point() else value
            if parts[-1] and size + small.nbytes > PART:
                parts.append({})
                size = 0
            parts[-1][key] = small.cpu().contiguous().clone()
            size += small.nbytes
        for old in self._files(name):
            old.unlink()
        for number, part in enumerate(parts, 1):
            save_file(part, self.run / f"{name}-{number}.safetensors")

    def _files(self, name: str) -> list[Path]:
        return sorted(self.run.glob(f"{name}-[0-9].safetensors"))

    def has(self, name: str) -> bool:
        return bool(self._files(name))

    def forget(self, *names: str) -> None:
        """Lets go of phases that were trained on what is now trained anew: their weights, and that they were finished."""
        if self.rank:
            return
        for name in names:
            for path in self._files(name):
                path.unlink()
        with self.progress() as table:
            for name in names:
                table.pop(name, None)

    @contextlib.contextmanager
    def progress(self) -> Iterator[dict[str, Any]]:
        """The table of ``progress.json``, to be changed; phases may be trained side by side, and end together."""
        new = self.run / "progress.new"
        with (self.run / "progress.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            table = self.read_progress()
            yield table
            new.write_text(json.dumps(table, indent=1) + "\n")
            new.replace(self.run / "progress.json")

    def read_progress(self) -> dict[str, Any]:
        """The table, as it is."""
        path = self.run / "progress.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def load(self, name: str) -> dict[str, Tensor]:
        """What ``save`` wrote, in float32.

        Raises:
            FileNotFoundError: nothing was saved by that name; it says which phase does.
        """
        files = self._files(name)
        if not files:
            raise FileNotFoundError(f"There is no {name}-1.safetensors in {self.run}. Run its phase first.")
        found = {key: value for file in files for key, value in load_file(file).items()}
        return {key: value.float() if value.is_floating_point() else value for key, value in found.items()}


class Progress:
    """How far a phase is, over all its slices: kept in ``progress.json``.

    Iterating yields the share that is done, until the phase or this slice ends. The first steps of a slice, in which graphs are
    compiled, take no time of the phase's.

    Args:
        seconds: of this slice from here on, with what comes before the first step; None for the whole rest of the phase.
    """

    WARM_UP = 4

    def __init__(self, session: Session, name: str, phase: Phase, seconds: float | None) -> None:
        self.session = session
        self.name = name
        self.phase = phase
        self.slice = seconds
        self._entered = time.monotonic()
        entry = session.read_progress().get(name, {})
        self.steps: int = entry.get("steps", 0)
        self.seconds: float = entry.get("seconds", 0.0)
        # Of the recipe as it is now: a phase that was given more seconds since goes on.
        self.done = min(self.steps / phase.steps if phase.steps else self.seconds / phase.seconds, 1.0)

    @property
    def finished(self) -> bool:
        return self.done >= 1.0

    def __iter__(self) -> Iterator[float]:
        before, started, first = self.seconds, 0.0, self.steps
        while self.done < 1.0:
            yield self.done
            self.steps += 1
            if self.phase.steps:
                self.done = min(self.steps / self.phase.steps, 1.0)
                continue
            if self.steps - first == self.WARM_UP:
                if self.session.device.type == "cuda":
                    torch.cuda.synchronize()
                started = time.monotonic()
            elapsed = time.monotonic() - started if started else 0.0
            over = self.slice is not None and time.monotonic() - self._entered > self.slice
            told = self.session.agreed(-1.0 if over else elapsed)
            if told < 0:
                break
            self.seconds = before + told
            self.done = min(self.seconds / self.phase.seconds, 1.0)
        self.save()

    def rates(self, done: float) -> tuple[float, float]:
        """Adam's and Muon's learning rates: up over the first steps, level, then down in a line to a hundredth."""
        factor = min(1.0, (self.steps + 1) / self.phase.warmup, max((1 - done) / self.phase.decay, 0.01))
        return self.phase.rate * factor, self.phase.matrix_rate * factor

    def save(self) -> None:
        if self.session.rank == 0:
            with self.session.progress() as table:
                table[self.name] = {"done": self.done, "steps": self.steps, "seconds": self.seconds}


def resume(session: Session, name: str, optimizer: MuonAdam, progress: Progress) -> None:
    """Puts an optimiser where a phase stopped: exactly from the state beside the run, or from the weights alone."""
    if not progress.steps:
        return
    state = session.run / "states" / f"{name}.safetensors"
    found = load_file(state) if state.exists() else {}
    if int(found.get("steps", torch.tensor(-1))) != progress.steps:
        found = session.load(name)
        session.log(name, resumed="from the weights alone: moments start anew")
    optimizer.load({key: value.to(session.device) for key, value in found.items()})


def keep(session: Session, name: str, optimizer: MuonAdam, progress: Progress) -> None:
    """Saves a phase: its averaged weights, and until it is finished all that is needed to go on exactly."""
    session.save(name, optimizer.averages)
    on = torch.cuda.get_device_name(session.device) if session.device.type == "cuda" else "CPU"
    session.log(name, done=progress.done, steps=progress.steps, seconds=progress.seconds, on=on)
    if session.rank:
        return
    path = session.run / "states" / f"{name}.safetensors"
    if progress.finished:
        path.unlink(missing_ok=True)
    else:
        path.parent.mkdir(exist_ok=True)
        save_file({key: value.cpu().contiguous() for key, value in optimizer.state().items()}, path)


def in_processes(work: Callable[[Session], None], session: Session, processes: int) -> None:
    """Does the work in so many processes, a GPU each; in this one if there is but one."""
    if processes == 1:
        work(session)
        return
    meeting = session.run / f"meeting-{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        meeting.unlink()
    mp.spawn(_process, args=(work, session, processes, meeting), nprocs=processes)
    meeting.unlink(missing_ok=True)


def _process(rank: int, work: Callable[[Session], None], session: Session, processes: int, meeting: Path) -> None:
    cuda = session.device.type == "cuda"
    dist.init_process_group(
        "nccl" if cuda else "gloo", init_method=f"file://{meeting.resolve()}", rank=rank, world_size=processes
    )
    session.rank, session.world = rank, processes
    session._hosts = dist.new_group(backend="gloo") if cuda else dist.group.WORLD
    if cuda:
        session.device = torch.device("cuda", rank)
        torch.cuda.set_device(rank)
    try:
        work(session)
    finally:
        dist.destroy_process_group()


def _short(value: object) -> object:
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: _short(item) for key, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, (list, tuple)) else value
