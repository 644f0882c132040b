"""The server over HTTP: Hwaga's own API, that of OpenAI for images, health and metrics, as one app over a dispatcher."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI

from hwaga.cards import ModelCard
from hwaga.prompt import Library
from hwaga.server import health, native, openai_images, page, plans, refusals, words
from hwaga.server.access_log import AccessLog
from hwaga.server.dispatcher import Dispatcher
from hwaga.server.documented import Documented
from hwaga.server.drawing import Front
from hwaga.server.folders import own_folders
from hwaga.server.security import Access, Gate
from hwaga.server.served import Served
from hwaga.settings import Settings
from hwaga.version import __version__

UPLOADS = ("/v1/jobs", "/v1/images/edits")


def create_app(
    dispatcher: Dispatcher,
    cards: Sequence[ModelCard],
    settings: Settings,
    access: Access,
    *,
    log_prompts: bool = False,
) -> FastAPI:
    """The app. It starts the dispatcher when it starts, and stops it, at once, when it stops.

    Args:
        dispatcher: not started yet.
        cards: the models that its workers open; the first is the default.
        settings: whose packs and LoRAs count.
        access: who is let in.
        log_prompts: whether the log has the words of each job.

    Raises:
        CheckpointError: a model's tokenizer is not there, or damaged.
        PackError: a prompt pack is not valid.
    """

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        await dispatcher.start()
        try:
            yield
        finally:
            app.state.front.decoders.shutdown(wait=False, cancel_futures=True)
            await dispatcher.stop(0)

    # Its pages of documentation would load scripts from elsewhere.
    app = Documented(title="Hwaga", version=__version__, lifespan=running, docs_url=None, redoc_url=None)
    library = Library.load(settings.packs)
    models = {card.name: Served.of(card, library, settings) for card in cards}
    dispatcher.store.served = tuple(models)
    app.state.front = Front(dispatcher, models, own_folders(settings, *cards), log_prompts)
    app.state.metrics = health.Metrics()
    dispatcher.on_end = app.state.metrics.observe
    dispatcher.on_step = app.state.metrics.steps.inc
    refusals.add_to(app)
    for part in (native, words, openai_images, plans, health, page):
        app.include_router(part.router)
    app.add_middleware(Gate, dispatcher=dispatcher, access=access, uploads=UPLOADS)
    app.add_middleware(AccessLog)  # the last one added is the outermost
    return app
