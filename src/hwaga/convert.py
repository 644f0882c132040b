"""A checkpoint made into another: planned by headers, written beside its place, and moved there when it is whole."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hwaga.card_toml import card_toml
from hwaga.cards import CARD_FILE, ModelCard
from hwaga.errors import CheckpointError, ConversionError, DiskSpaceError
from hwaga.families import find_family
from hwaga.weights.conversion import Conversion
from hwaga.weights.file_lock import locked
from hwaga.weights.verified import CheckedFile, Verified, sync_folder, write_durably

HEADROOM = 1.01
"""Free disk space that is asked for, as a multiple of what is written: headers and the file system's own notes."""

WHOLE = "bf16"
"""The precision that keeps all weights in bfloat16."""


@dataclass(frozen=True)
class ConversionPlan:
    """What will be written.

    Attributes:
        card: of the source.
        destination: a folder that is not there yet.
        precision: ``WHOLE``, or the name of fewer bits.
    """

    card: ModelCard
    destination: Path
    precision: str
    layout: str
    conversion: Conversion

    @property
    def space_needed(self) -> int:
        """Bytes of free disk."""
        return int(self.conversion.to_write * HEADROOM)

    def check_space(self) -> None:
        """Refuses a disk that is too small.

        Raises:
            DiskSpaceError: with how much is missing.
        """
        free = shutil.disk_usage(_existing(self.destination.parent)).free
        if free < self.space_needed:
            raise DiskSpaceError(
                f"{self.destination.parent} has {free / 2**30:.1f} GiB free and {self.space_needed / 2**30:.1f} GiB are "
                "needed. Make room, or choose another disk."
            )


def plan_conversion(card: ModelCard, destination: Path, *, precision: str, layout: str) -> ConversionPlan:
    """Looks what a checkpoint holds and what is to be written. No weights are read.

    Raises:
        ModelError: the source is not there, or damaged.
        ConversionError: there is something at the destination, no such precision or layout, or a name that a card cannot
            hold.
    """
    family, destination = find_family(card.family), destination.expanduser().absolute()
    if precision not in (WHOLE, *family.precisions):
        raise ConversionError(f"--precision is one of {WHOLE}, {', '.join(family.precisions)}, not {precision!r}.")
    if layout not in family.layouts:
        raise ConversionError(f"--layout is one of {', '.join(family.layouts)}, not {layout!r}.")
    if os.path.lexists(destination):
        raise ConversionError(f"{destination} is there already, and nothing is overwritten. Name another folder.")
    card.check_present()
    marker = Verified.read(card.folder)
    if marker is not None and marker.missing:
        raise CheckpointError(
            f"{card.name} is only partly on this machine: {marker.missing[0]} is missing or damaged in {card.folder}. "
            f"`hwaga download {card.address}` fetches what is."
        )
    fewer = None if precision == WHOLE else precision
    conversion = family.conversion(card.folder, files=card.files, precision=fewer, layout=layout)
    styles = {style.lora for style in card.styles.values() if style.lora is not None}
    loras = {name: card.folder / name for name in sorted(styles) if (card.folder / name).is_file()}
    conversion = replace(conversion, copies={**conversion.copies, **loras})
    plan = ConversionPlan(card, destination, precision, layout, conversion)
    try:
        card_toml(_new_card(plan, destination, ())).encode()
    except UnicodeEncodeError as error:  # a path is bytes, and need not be text
        raise ConversionError(
            f"The name of {destination} or of the source {card.folder} is not UTF-8, and the new model's card could not "
            "hold it. Rename the folder."
        ) from error
    return plan


def convert(plan: ConversionPlan) -> Generator[int, None, None]:
    """Writes the new checkpoint, and yields how many stored bytes were read, of ``plan.conversion.to_read``.

    It appears at its place when all of it is on the disk. Closing the generator removes what was written; what a killed
    process leaves lies in a hidden folder beside the place, and the next conversion to it removes that.

    Raises:
        CheckpointError: stored weights cannot be read.
        ConversionError: it cannot be written, or another conversion to the same place is at work.
        DiskSpaceError: the disk is full.
    """
    try:
        with _work_folder(plan.destination) as folder:
            checked: dict[str, CheckedFile] = {}
            yield from plan.conversion.write(folder, checked)
            kept = plan.layout != "diffusers"
            card = _new_card(plan, folder, [folder / path for path in checked if kept and _is_weights(path)])
            write_durably(folder / CARD_FILE, card_toml(card).encode())
            loras = {style.lora for style in card.styles.values() if style.lora is not None}
            Verified(card.source, plan.precision, checked, (), tuple(sorted(loras & checked.keys()))).write(folder)
            if os.path.lexists(plan.destination):
                raise ConversionError(f"{plan.destination} has appeared meanwhile, and nothing is overwritten.")
            folder.rename(plan.destination)
            sync_folder(plan.destination.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskSpaceError(f"{plan.destination.parent} takes no more ({error.strerror}). Make room.") from error
        raise ConversionError(f"{plan.destination} cannot be written: {error}. Choose another folder.") from error


def _new_card(plan: ConversionPlan, folder: Path, files: Sequence[Path]) -> ModelCard:
    return replace(
        plan.card,
        name=plan.destination.name,
        source=f"{plan.card.source or plan.card.folder}, converted to {plan.precision}",
        folder=folder,
        files=tuple(files),
        # A style that is a checkpoint is another model, which stays where it is.
        styles={name: style for name, style in plan.card.styles.items() if style.checkpoint is None},
        download=None,
    )


def _is_weights(path: str) -> bool:
    return path.endswith(".safetensors") and not path.startswith("loras/")


@contextmanager
def _work_folder(destination: Path) -> Iterator[Path]:
    """An empty folder beside the destination, on the same disk, that is gone afterwards unless it was moved.

    Raises:
        ConversionError: another process works in it.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    folder = destination.with_name(f".{destination.name}.converting")
    lock = destination.with_name(f".{destination.name}.converting.lock")
    at_work = ConversionError(f"Another conversion to {destination} is at work. Wait for it, or stop it.")
    with locked(lock, at_work):
        shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.is_dir())
