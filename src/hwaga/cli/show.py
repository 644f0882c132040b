"""``hwaga show``: what made a picture, and making it again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from hwaga.cli.console import print_json, print_result, progress_bar, say
from hwaga.errors import ImageFileError, RequestError, SourceImageError
from hwaga.image_file import check_writable, encode_result, format_of, read_settings, write
from hwaga.request import ImageRequest
from hwaga.result import Step
from hwaga.source_image import SourceImage


def show(
    file: Annotated[Path, typer.Argument(help="A picture that Hwaga made.")],
    rerun: Annotated[bool, typer.Option("--rerun", help="Make it again and say whether it is the same.")] = False,
    image: Annotated[
        Path | None,
        typer.Option(help="With --rerun: the source picture, where it lies neither beside FILE nor in this folder."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="With --rerun: where to write (FILE-rerun beside it if left out)."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="With --rerun: the model, where it is not known by its name.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="With --rerun: another device than it was made on.")] = None,
    dtype: Annotated[str | None, typer.Option(help="With --rerun: another number format.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the settings as JSON.")] = False,
) -> None:
    """Show what made a picture: prompt, model, seed, size and everything else that it carries."""
    settings = _checked(file, read_settings(file))
    if not rerun and any((image, output, model, device, dtype)):
        raise RequestError(
            "--image, --output, --model, --device and --dtype say how to make a picture again: add --rerun."
        )
    if rerun:
        _rerun(file, settings, image, output, model=model, device=device, dtype=dtype)
    elif as_json:
        print_json(settings)
    else:
        for name, value in _rows(settings):
            print_result(f"{name:<16}{value}")


def _rows(settings: dict[str, Any]) -> list[tuple[str, Any]]:
    request, digests = dict(settings["request"]), settings.get("loras", {})
    words = _words(request)
    for name in ("composed", "loras"):
        request.pop(name, None)
    rows = list(request.items())
    if words.composed:
        rows.append(("composed", words.composed.prompt))
        rows += [("unwanted", words.composed.negative)] if words.composed.negative else []
    rows += [
        ("lora", f"{lora.name}:{lora.weight:g} ({digests.get(lora.name, 'unknown')})") for lora in words.model_loras
    ]
    rows += [(name, value) for name, value in settings.items() if name not in ("request", "loras")]
    return [(name, _cell(name, value)) for name, value in rows]


def _cell(name: str, value: Any) -> Any:
    if name == "image":
        return f"{value['name']} (sha256 {value['sha256'][:12]}…)"
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def _words(request: dict[str, Any]) -> ImageRequest:
    """The words and LoRAs of a request, without what else it may hold."""
    names = ("composed", "loras", "avoid", "style", "industry", "use")
    return ImageRequest.from_json({"prompt": "any", **{name: request[name] for name in names if name in request}})


def _checked(file: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, once they have the form that is relied on here. The file may be anybody's."""
    request = settings.get("request")
    source = request.get("image", {}) if isinstance(request, dict) else None
    texts = [settings.get(name) for name in ("version", "model", "weights", "device", "dtype")]
    if not isinstance(source, dict) or not all(isinstance(text, str) for text in texts):
        raise ImageFileError(f"The settings in {file} are not those of a picture. Give the picture as it was made.")
    try:
        if not isinstance(settings.get("loras", {}), dict):
            raise RequestError("its LoRAs are no table.")
        _words(cast("dict[str, Any]", request))
    except RequestError as error:
        raise ImageFileError(f"The settings in {file} are damaged: {error}") from error
    if source and not all(isinstance(source.get(name), str) for name in ("name", "sha256")):
        raise ImageFileError(
            f"The settings in {file} do not name their source picture. Give the picture as it was made."
        )
    return settings


def _rerun(
    file: Path,
    settings: dict[str, Any],
    image: Path | None,
    output: Path | None,
    *,
    model: str | None,
    device: str | None,
    dtype: str | None,
) -> None:
    target = output or file.with_stem(f"{file.stem}-rerun")
    if target.is_dir():
        target = target / file.name
    if target.resolve() == file.resolve():
        raise ImageFileError(f"{file} would be written over. Give another name with -o.")
    check_writable(target)
    request_values = settings["request"]
    source = _source(file, request_values["image"], image) if "image" in request_values else None
    request = ImageRequest.from_json(request_values, image=source)
    with progress_bar() as bar:
        bar.show("Starting", 0, None)
        from hwaga.engine import Engine

        with Engine.open(
            model or settings["model"], device=device or settings["device"], dtype=dtype or settings["dtype"],
            precision=str(settings.get("precision", "full")),
            progress=lambda done, total: bar.show("Loading weights", done, total),
        ) as engine:  # fmt: skip
            for event in engine.stream(request):
                if isinstance(event, Step):
                    bar.show("Drawing", event.index, event.total)
    assert not isinstance(event, Step), "a stream ends in its result"
    if event.weights != settings["weights"] and model is None:
        raise ImageFileError(
            f"{file} was made with other weights than those that {event.model} names here. Name its model with --model."
        )
    if dict(event.loras) != settings.get("loras", {}):
        other = [name for name, digest in event.loras.items() if settings.get("loras", {}).get(name) != digest]
        raise ImageFileError(
            f"{file} was made with another file than the LoRA that is called {', '.join(other)} here. Put that one there."
        )
    data = encode_result(event, format_of(target))
    write(target, data)
    print_result(str(target))
    if data == file.read_bytes():
        say(f"Identical to {file}, byte for byte.")
    else:
        say(f"Not identical to {file}: another version, machine, batch, model, device or file format made it.")
        raise typer.Exit(1)


def _source(file: Path, named: dict[str, Any], given: Path | None) -> SourceImage:
    """The source picture of an image-to-image request, known by its sha256."""
    name = Path(str(named.get("name"))).name
    others = []
    for path in [given] if given else [file.parent / name, Path(name)]:
        if path.is_file():
            source = SourceImage.read(path)
            if source.sha256 == named["sha256"]:
                return replace(source, name=name)
            others.append(path)
    if others:
        raise SourceImageError(
            f"{others[0]} is not the picture that {file} was made from: its content is another. Say where that is with --image."
        )
    raise SourceImageError(f"{file} was made from {name}, which is not here. Say where it is with --image.")
