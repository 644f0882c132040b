"""``hwaga text2image`` and ``hwaga image2image``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from hwaga.cli.console import Bar, print_json, print_result, progress_bar, say
from hwaga.errors import ImageFileError, SizeError
from hwaga.image_file import check_writable, encode_result, format_of, write
from hwaga.request import SAMPLERS, Fit, ImageRequest, LoraUse
from hwaga.result import Result, Step

Prompt = Annotated[str, typer.Argument(help="What to draw, in your own words: English, Korean, Chinese …")]
Output = Annotated[Path, typer.Option("--output", "-o", help="A file (.png, .jpg, .webp) or a folder.")]
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A model's name, a checkpoint folder or a card file (HWAGA_MODEL, or mini)."),
]
Style = Annotated[str | None, typer.Option(help="A style (see `hwaga styles`), or auto.")]
Industry = Annotated[str | None, typer.Option(help="A business (see `hwaga industries`), or auto.")]
Avoid = Annotated[list[str] | None, typer.Option(help="Something not wanted, as text or people. Repeatable.")]
Use = Annotated[str | None, typer.Option(help="Where it will be shown: feed, story, banner or poster.")]
Loras = Annotated[
    list[str] | None, typer.Option(metavar="NAME[:WEIGHT]", help="A LoRA (see `hwaga lora list`). Repeatable.")
]
StyleFallback = Annotated[
    bool, typer.Option("--style-fallback", help="Go on without the style's LoRA where it is absent.")
]
Aspect = Annotated[str | None, typer.Option(help="A shape from the model's card: 1:1, 3:4, 4:3, 16:9, 9:16.")]
Size = Annotated[str | None, typer.Option(help="Width x height in pixels, as in 1024x768.")]
Steps = Annotated[int | None, typer.Option(help="Forwards of the denoiser (by default the model's: 8).")]
Seed = Annotated[int | None, typer.Option(help="Makes a picture repeatable (drawn at random if left out).")]
Negative = Annotated[
    str | None, typer.Option(help="What the picture should not show, for models with guidance. Others take --avoid.")
]
Guidance = Annotated[
    float | None,
    typer.Option(
        help="How much the picture follows the prompt, 1 to 30, for models with guidance (the model's default)."
    ),
]
Sampler = Annotated[
    str | None, typer.Option(help=f"{' or '.join(SAMPLERS)}, for models with a choice (by default the model's).")
]
Number = Annotated[
    int, typer.Option("-n", "--number", min=1, help="How many pictures; each next one counts the seed up.")
]
MaxTokens = Annotated[int | None, typer.Option(help="Raise the prompt's limit of 512 tokens, up to 960.")]
Device = Annotated[str | None, typer.Option(help="cuda, cuda:1, mps or cpu (by default the fastest present).")]
Dtype = Annotated[
    str | None, typer.Option(help="bfloat16, float32, or float16 for SDXL (by default what suits the device).")
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="auto (the default): full wherever that fits. Or full (bf16), int8, fp8, int4: the large weights in fewer bits."
    ),
]
Vram = Annotated[
    str | None, typer.Option(help="Most that may be taken of the GPU, such as 8GiB (HWAGA_VRAM, or what is free).")
]
Ram = Annotated[
    str | None,
    typer.Option(help="Most that may be taken of the machine's memory, such as 12GiB (HWAGA_RAM, or what is free)."),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print everything about the pictures as JSON instead of their paths.")
]


def text2image(
    prompt: Prompt,
    style: Style = None,
    industry: Industry = None,
    avoid: Avoid = None,
    use: Use = None,
    lora: Loras = None,
    style_fallback: StyleFallback = False,
    output: Output = Path(),
    model: Model = None,
    aspect: Aspect = None,
    size: Size = None,
    steps: Steps = None,
    negative: Negative = None,
    guidance: Guidance = None,
    sampler: Sampler = None,
    seed: Seed = None,
    number: Number = 1,
    max_tokens: MaxTokens = None,
    device: Device = None,
    dtype: Dtype = None,
    precision: Precision = None,
    vram: Vram = None,
    ram: Ram = None,
    as_json: Json = False,
) -> None:
    """Make a picture from words. Prints the path of each picture."""
    width, height = parse_size(size)
    request = ImageRequest(
        prompt,
        style=style,
        industry=industry,
        avoid=tuple(avoid or ()),
        use=use,
        loras=_loras(lora),
        style_fallback=style_fallback,
        width=width,
        height=height,
        aspect=aspect,
        steps=steps,
        negative=negative,
        guidance=guidance,
        sampler=sampler,
        seed=seed,
        max_tokens=max_tokens,
    )
    run(
        request, output, number, model=model, device=device, dtype=dtype, precision=precision, vram=vram, ram=ram,
        as_json=as_json,
    )  # fmt: skip


def image2image(
    image: Annotated[str, typer.Argument(help="The picture to start from: PNG, JPEG or WebP.")],
    prompt: Prompt,
    strength: Annotated[
        float, typer.Option(help="Above 0, up to 1: the noise level that the picture is taken to. 1 ignores it.")
    ] = 0.6,
    fit: Annotated[
        str, typer.Option(help="How a picture of another shape meets --aspect or --size: crop, pad or stretch.")
    ] = "crop",
    steps_scale: Annotated[
        bool, typer.Option("--steps-scale", help="Let strength drop steps, as the reference pipeline does.")
    ] = False,
    style: Style = None,
    industry: Industry = None,
    avoid: Avoid = None,
    use: Use = None,
    lora: Loras = None,
    style_fallback: StyleFallback = False,
    output: Output = Path(),
    model: Model = None,
    aspect: Aspect = None,
    size: Size = None,
    steps: Steps = None,
    negative: Negative = None,
    guidance: Guidance = None,
    sampler: Sampler = None,
    seed: Seed = None,
    number: Number = 1,
    max_tokens: MaxTokens = None,
    device: Device = None,
    dtype: Dtype = None,
    precision: Precision = None,
    vram: Vram = None,
    ram: Ram = None,
    as_json: Json = False,
) -> None:
    """Make a picture from a picture and words. Its size is the picture's own unless one is given."""
    width, height = parse_size(size)
    request = ImageRequest(
        prompt,
        style=style,
        industry=industry,
        avoid=tuple(avoid or ()),
        use=use,
        loras=_loras(lora),
        style_fallback=style_fallback,
        image=image,
        strength=strength,
        fit=cast(Fit, fit),
        steps_scale=steps_scale,
        width=width,
        height=height,
        aspect=aspect,
        steps=steps,
        negative=negative,
        guidance=guidance,
        sampler=sampler,
        seed=seed,
        max_tokens=max_tokens,
    )
    run(
        request, output, number, model=model, device=device, dtype=dtype, precision=precision, vram=vram, ram=ram,
        as_json=as_json,
    )  # fmt: skip


def _loras(given: list[str] | None) -> tuple[LoraUse, ...]:
    return tuple(LoraUse.parse(text) for text in given or ())


def parse_size(text: str | None) -> tuple[int | None, int | None]:
    """Width and height of "1024x768".

    Raises:
        SizeError: the text is of another form.
    """
    if text is None:
        return None, None
    match = re.fullmatch(r"\s*(-?\d{1,6})\s*[xX×*]\s*(-?\d{1,6})\s*", text)
    if match is None:
        raise SizeError(f"The size must be width x height, as in 1024x768, not {text!r}.")
    return int(match[1]), int(match[2])


def run(
    request: ImageRequest,
    output: Path,
    number: int,
    *,
    model: str | None,
    device: str | None,
    dtype: str | None,
    precision: str | None,
    vram: str | None,
    ram: str | None,
    as_json: bool,
) -> None:
    """Makes and writes ``number`` pictures of a request, one after the other, and reports each once it is on disk."""
    check_writable(output)
    made: list[tuple[Path, Result]] = []
    try:
        with progress_bar() as bar:
            bar.show("Starting", 0, None)
            from hwaga.engine import Engine  # brings torch, which is not imported for a command that fails before

            with Engine.open(
                model, device=device, dtype=dtype, precision=precision, vram=vram, ram=ram,
                progress=lambda done, total: bar.show("Loading weights", done, total),
            ) as engine:  # fmt: skip
                resolved = engine.resolve(request)
                for note in resolved.composed.notes if resolved.composed else ():
                    say(note)
                requests = resolved.variations(number)
                for place, variation in enumerate(requests):
                    result = _draw(engine, variation, bar, place, number)
                    path = _target(output, result, number)
                    write(path, encode_result(result, format_of(path)))
                    made.append((path, result))
                    if not as_json:
                        print_result(str(path))
    finally:  # what is on disk is reported, also when a later picture failed
        if as_json and made:
            print_json({"images": [describe(path, result) for path, result in made]})


def _draw(engine: Any, request: ImageRequest, bar: Bar, place: int, number: int) -> Result:
    subject = "Drawing" if number == 1 else f"Drawing {place + 1} of {number}"
    bar.show(subject, 0, None)
    for event in engine.stream(request):
        if isinstance(event, Step):
            bar.show(subject, event.index, event.total)
    return cast(Result, event)


def _target(output: Path, result: Result, number: int) -> Path:
    """The file for a picture: the one asked for, one beside it for each seed, or a new name in the folder."""
    if not output.is_dir():
        return output if number == 1 else output.with_stem(f"{output.stem}-{result.seed}")
    words = re.sub(r"[^\w]+", "-", result.request.prompt)[:40].strip("-_") or "picture"
    names = [f"{words}-{result.seed}.png", *(f"{words}-{result.seed}-{k}.png" for k in range(2, 10000))]
    free = next((output / name for name in names if not (output / name).exists()), None)
    if free is None:
        raise ImageFileError(f"{output} is full of pictures called {names[0]}. Name a file with -o.")
    return free


def describe(path: Path, result: Result) -> dict[str, Any]:
    """A finished picture as JSON values."""
    device, dtype = result.device
    return {
        "path": str(path),
        "seed": result.seed,
        "model": result.model,
        "weights": result.weights,
        "device": device,
        "dtype": dtype,
        "precision": result.precision,
        "prompt": result.request.model_prompt,
        "loras": dict(result.loras),
        "tokens": result.tokens,
        "request": result.request.to_json(),
        "seconds": {
            "encode": round(result.timings.encode, 4),
            "denoise": round(result.timings.denoise, 4),
            "decode": round(result.timings.decode, 4),
            "total": round(result.timings.total, 4),
        },
        "memory": {
            "peak_vram_bytes": result.memory.peak_vram,
            "rss_anon_bytes": result.memory.rss_anon,
            "swap_bytes": result.memory.swap,
        },
    }
