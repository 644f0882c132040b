"""Several models in one process, which share the memory of one device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from hwaga.cards import ModelCard
from hwaga.engine import Engine
from hwaga.errors import ModelError, UnknownModelError
from hwaga.families.family import Progress
from hwaga.memory.device import find_device
from hwaga.model_lookup import card_of
from hwaga.room import Caps, Room
from hwaga.settings import Settings


class Engines:
    """An engine for each of several models, under one budget of memory.

        with Engines.open(["z-image-turbo", "sdxl"], vram="22.5 GiB") as engines:
            engines["sdxl"].generate(ImageRequest("a red apple")).image.save("apple.png")

    Where all of them fit, all of them stay. Where not, the one that is used has the room that it would have alone, and of those
    that were used longest ago so much leaves the device as that takes; ``engine.plan.neighbours`` says how much. It comes back
    when they are used. No weights lie on the device twice.

    Iterating gives the engines, in the order that they were asked for; ``default`` is the first.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = {engine.card.name: engine for engine in engines}

    @classmethod
    def open(
        cls,
        models: Sequence[str | Path | ModelCard | None],
        *,
        device: str | None = None,
        dtype: str | None = None,
        precision: str | None = None,
        vram: int | str | None = None,
        ram: int | str | None = None,
        progress: Progress | None = None,
        settings: Settings | None = None,
        left_out: Callable[[str | Path | ModelCard | None, ModelError], None] | None = None,
    ) -> Engines:
        """Opens models, and loads as many as fit beside those before them. The others are loaded when they are used.

        Args:
            models: as of ``Engine.open``, each of a name of its own; at least one.
            device, dtype, precision, settings: as of ``Engine.open``.
            vram, ram: most that all of them may take together.
            progress: is told of each model that is loaded, one after the other.
            left_out: is told of each model that is not there or damaged, and why, once the others are open; if there is none
                of these, the first one's error is raised. None: such a model is an error.

        Raises:
            ModelError: a model is unknown, not there or damaged, or two of them have the same name.
            DeviceError: this machine has no such device, or a model does not run in that format.
            DoesNotFitError: not even one picture of the smallest size of a model fits the memory, with all others away.
            DeviceMemoryError: memory ran out while weights were brought in, which were planned to fit.
        """
        settings = settings or Settings.read()
        if not models:
            raise ModelError("There is no model to open. Name at least one.")
        room = Room(find_device(device or settings.device), Caps.of(vram, ram, settings))
        found: dict[str, tuple[str | Path | ModelCard | None, ModelCard]] = {}
        lacking: list[tuple[str | Path | ModelCard | None, ModelError]] = []
        engines: list[Engine] = []
        for model in models:  # names first: nothing is read for a set of models that cannot be
            try:
                card = card_of(model, settings)
            except ModelError as error:
                if left_out is None:
                    raise
                lacking.append((model, error))
                continue
            if card.name in found:
                raise ModelError(
                    f"Two of the models are called {card.name!r}. Give one of them a card of another name."
                )
            found[card.name] = model, card
        with ExitStack() as undo:
            for model, card in found.values():
                try:
                    engine = Engine.open(
                        card, dtype=dtype, precision=precision, progress=progress, settings=settings, room=room
                    )
                except ModelError as error:
                    if left_out is None:
                        raise
                    lacking.append((model, error))
                    continue
                undo.callback(engine.close)
                engines.append(engine)
            if not engines:
                raise lacking[0][1]
            undo.pop_all()
        if left_out is not None:
            for each in lacking:
                left_out(*each)
        return cls(engines)

    @property
    def default(self) -> Engine:
        """The first one."""
        return next(iter(self))

    @property
    def names(self) -> list[str]:
        """Of the models."""
        return list(self._engines)

    def __getitem__(self, name: str) -> Engine:
        """The engine of a model by its name. Raises UnknownModelError."""
        if name not in self._engines:
            raise UnknownModelError(f"There is no model {name!r} here. There is {', '.join(self._engines)}.")
        return self._engines[name]

    def __iter__(self) -> Iterator[Engine]:
        return iter(self._engines.values())

    def __len__(self) -> int:
        return len(self._engines)

    def close(self) -> None:
        """Closes all of them."""
        for engine in self:
            engine.close()

    def __enter__(self) -> Engines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
