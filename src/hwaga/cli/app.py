"""The commands and what they are called."""

from __future__ import annotations

from typing import Annotated

import typer

from hwaga.cli.console import print_result
from hwaga.cli.doctor import doctor
from hwaga.cli.download import download
from hwaga.cli.generate import image2image, text2image
from hwaga.cli.lora import lora
from hwaga.cli.models import models
from hwaga.cli.plan import plan
from hwaga.cli.prompt import industries, prompt, styles
from hwaga.cli.serve import keys, serve
from hwaga.cli.show import show
from hwaga.version import __version__

app = typer.Typer(
    name="hwaga",
    help="Hwaga (화가, painter): pictures from words with Z-Image Turbo, on the GPU you have.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        print_result(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


for command in (text2image, image2image, prompt, styles, industries, show, download, serve, plan, doctor):
    app.command()(command)
app.add_typer(lora)
app.add_typer(keys)
app.add_typer(models, name="models")
