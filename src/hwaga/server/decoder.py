"""The process that decodes one picture from a stranger, and ends.

``python -m hwaga.server.decoder check|decode`` reads the picture's bytes from standard input. It writes a line of JSON,
{"width", "height"} or {"error": message}, and after ``decode`` the pixels, as rows of RGB. The kernel limits its memory, its
time on the CPU and the files that it may write (none), so a file that a decoder chokes on ends this process and no other.

That is no sandbox: a file that takes a decoder over runs code as the server's user, who can read what that user can.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import warnings
from pathlib import Path

MAX_ADDRESS_SPACE = 3 * 2**30
"""Bytes: six RGBA copies of the largest picture that is read (turning it upright, laying it over white) take half of it."""

MAX_CPU = 30
"""Seconds: a picture of 64 megapixels takes a few."""


def main() -> None:
    """Decodes what comes on standard input."""
    for limit, value in (
        (resource.RLIMIT_AS, MAX_ADDRESS_SPACE),
        (resource.RLIMIT_CPU, MAX_CPU),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(
            ValueError, OSError
        ):  # a lower limit is set already, or this system has none of the kind
            resource.setrlimit(limit, (value, value))
    with contextlib.suppress(OSError):  # where the machine is short of memory, it is this process that goes
        Path("/proc/self/oom_score_adj").write_text("1000")
    warnings.simplefilter("ignore")
    from hwaga.errors import SourceImageError
    from hwaga.source_image import SourceImage

    pixels = b""
    try:
        image = SourceImage.read(sys.stdin.buffer.read()).image
        said: dict[str, int | str] = {"width": image.width, "height": image.height}
        if sys.argv[1] == "decode":
            pixels = image.tobytes()
    except SourceImageError as error:
        if isinstance(error.__cause__, MemoryError):
            raise error.__cause__ from None
        said = {"error": str(error)}
    sys.stdout.buffer.write(json.dumps(said).encode() + b"\n")
    sys.stdout.buffer.write(pixels)
    sys.stdout.buffer.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
