"""``hwaga serve`` and ``hwaga keys``."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hwaga.cli.console import print_result, say
from hwaga.cli.generate import Precision
from hwaga.errors import ServerError, SettingsError
from hwaga.model_lookup import find_card
from hwaga.server.store import SqliteStore
from hwaga.settings import Settings, bytes_of, parse_bytes
from hwaga.tokens import missing_packages

keys = typer.Typer(name="keys", help="API keys of the server.", no_args_is_help=True)

_EXTRA = ("fastapi", "uvicorn", "pydantic", "prometheus_client", "starlette", "python_multipart")


def serve(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8188,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="A model's name, a folder or a card file (HWAGA_MODEL, or mini). Repeatable: all share the memory of a "
            "device, and the first is what requests mean that name none.",
        ),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="cuda, cuda:1, mps or cpu. Repeatable: each draws jobs of its own (by default the fastest present)."
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16, float16 or float32 (by default what suits the device and the model).")
    ] = None,
    precision: Precision = None,
    vram: Annotated[
        str | None,
        typer.Option(help="Most that each worker may take of its GPU, such as 8GiB (HWAGA_VRAM, or what is free)."),
    ] = None,
    ram: Annotated[
        str | None,
        typer.Option(help="Most that each worker may take of the machine's memory (HWAGA_RAM, or what is free)."),
    ] = None,
    queue: Annotated[int, typer.Option(min=1, help="Most jobs that may wait.")] = 1000,
    warm_up: Annotated[
        bool,
        typer.Option(
            "--warm-up", help="Draw a picture before any is asked for, so that the first is as quick as others."
        ),
    ] = False,
    batch: Annotated[
        int, typer.Option(min=1, max=64, help="Most pictures that a device draws at once, of one job or of several.")
    ] = 1,
    job_timeout: Annotated[float, typer.Option(min=1, help="Seconds that the pictures of a job may take.")] = 600,
    load_timeout: Annotated[
        float,
        typer.Option(min=1, help="Seconds that a worker may get no further with loading its model, before a new one."),
    ] = 300,
    rate_limit: Annotated[
        float | None,
        typer.Option(min=0.1, help="How often a minute each API key may ask for work (as often as it likes)."),
    ] = None,
    keep_days: Annotated[float, typer.Option(min=0, help="How long ended jobs and their pictures are kept.")] = 7,
    keep_bytes: Annotated[str, typer.Option(help="Most room for pictures: older ones go first.")] = "20 GiB",
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A further name that the server is reached by. Repeatable.")
    ] = None,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write the words of each job to the log, which is without them.")
    ] = False,
) -> None:
    """Serve pictures over HTTP: Hwaga's own API, and that of OpenAI for images, below http://HOST:PORT/v1."""
    settings = Settings.read()
    for name, given in (("vram", vram), ("ram", ram)):
        bytes_of(name, given)
    models = model or [settings.model]
    cards = [find_card(each, settings.models) for each in models]
    for card in cards:  # a worker would find out at its start, again and again, and draw nothing of the others' either
        if missing := missing_packages(card):
            raise ServerError(
                f"{card.name} is drawn with {' and '.join(missing)}, not installed here. "
                f"Install what it needs in a checkout of Hwaga: pip install '.[server,{card.family}]'"
            )
    names = [card.name for card in cards]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ServerError(f"Two of the models are called {twice!r}. Give one of them a card of another name.")
    try:
        room = parse_bytes(keep_bytes)
    except ValueError as error:
        raise SettingsError(f"--keep-bytes {error}") from None
    try:
        from hwaga.server.api import create_app
        from hwaga.server.dispatcher import Dispatcher
        from hwaga.server.listener import bind, is_loopback, serve_app
        from hwaga.server.security import Access
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        raise ServerError(
            f"Serving needs {error.name}. Install it in a checkout of Hwaga: pip install '.[server]'"
        ) from error
    with closing(bind(host, port)) as listening:
        store = SqliteStore(settings.server, queue_limit=queue)
        try:
            address, taken = listening.getsockname()[:2]
            loopback = is_loopback(address)
            if not loopback and not store.keys.all():
                raise ServerError(
                    f"{host} can be reached from other machines, and there is no API key yet. Make one with "
                    "`hwaga keys add NAME`, or serve on 127.0.0.1."
                )
            dispatcher = Dispatcher(
                store,
                models=models,
                dtype=dtype or settings.dtype,
                precision=precision or settings.precision,
                vram=vram or settings.vram,
                ram=ram or settings.ram,
                devices=device or [settings.device],
                batch=batch,
                warm_up=warm_up,
                job_timeout=job_timeout,
                load_timeout=load_timeout,
                keep_seconds=keep_days * 86400,
                keep_bytes=room,
            )
            access = Access(hosts=(host, address, *(allow_host or ())), anonymous=loopback, per_minute=rate_limit)
            app = create_app(dispatcher, cards, settings, access, log_prompts=log_prompts)
        except BaseException:
            store.close()
            raise
        name = f"[{address}]" if listening.family == socket.AF_INET6 else address
        say(f"Serving {', '.join(names)} on http://{name}:{taken}. Ctrl-C stops.")
        serve_app(app, dispatcher, listening)


@keys.command()
def add(name: Annotated[str, typer.Argument(help="What it is for, to tell it from others.")]) -> None:
    """Make an API key, and print it. It cannot be shown again."""
    with _store() as store:
        key, secret = store.keys.add(name)
    print_result(secret)
    say(f"This key, {key.id}, is kept as a digest only: note it down. From now on the server asks for a key.")


@keys.command(name="list")
def list_keys() -> None:
    """List the API keys, without their secrets."""
    with _store() as store:
        found, closed = store.keys.all(), store.keys.required()
    if not found:
        say("There is none. Make one with `hwaga keys add NAME`.")
        if closed:
            say("The server asks for one all the same, as there have been keys. `hwaga keys open` ends that.")
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for key in found:
        table.add_row(key.id, Text(key.name))
    Console(highlight=False).print(table)


@keys.command()
def remove(key: Annotated[str, typer.Argument(help="The id that `hwaga keys list` shows.")]) -> None:
    """End an API key. Its jobs stay until they expire, and are seen by nobody; pictures by who knows their addresses."""
    with _store() as store:
        store.keys.remove(key)
        last = not store.keys.all()
    if last:
        say(
            "That was the last key. The server goes on asking for one: make another with `hwaga keys add NAME`, or let "
            "everyone on this machine in with `hwaga keys open`."
        )


@keys.command(name="open")
def open_to_all() -> None:
    """Ask for no key any more, on this machine alone. Keys must have been removed first."""
    with _store() as store:
        store.keys.open_to_all()
    say("Everyone on this machine is let in, until the next `hwaga keys add NAME`.")


@contextmanager
def _store() -> Iterator[SqliteStore]:
    with closing(SqliteStore(Settings.read().server)) as store:
        yield store
