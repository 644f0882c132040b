"""The commands and what they are called."""

from __future__ import annotations

from typing import Annotated

import typer

from hwaga.cli.doctor import doctor
from hwaga.cli.generate import image2image, text2image
from hwaga.cli.models import models
from hwaga.cli.show import show
from hwaga.version import __version__

app = typer.Typer(
    name="hwaga",
    help="Hwaga (화가, painter): pictures from words with Z-Image Turbo, on the GPU you have.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


for command in (text2image, image2image, show, models, doctor):
    app.command()(command)
