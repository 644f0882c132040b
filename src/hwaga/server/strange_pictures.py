"""Pictures from strangers: looked at, and decoded, by a process of their own that may fail as it likes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
from typing import Literal

from PIL import Image

from hwaga.errors import SourceImageError, WorkerError
from hwaga.source_image import SourceImage

DECODER = (sys.executable, "-P", "-m", "hwaga.server.decoder")
"""The command of a decoder. -P: nothing is imported from the folder it is started in."""

MAX_PICTURE = 40 * 2**20
"""Most bytes of a picture to start from, as it is sent."""

PATIENCE = 120.0
"""Seconds of wall time that a decoder may take: its time on the CPU is limited by itself."""

_MAGIC = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF....WEBP", re.DOTALL)
_NEEDED = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL")

_log = logging.getLogger(__name__)


def check_picture(data: bytes) -> tuple[int, int]:
    """Refuses what is no picture to start from, by size, by first bytes, and by decoding it. Returns (width, height), upright.

    Raises:
        SourceImageError: with the remedy.
        WorkerError: no process can be started.
    """
    if len(data) > MAX_PICTURE:
        raise SourceImageError(
            f"The picture has {len(data):,} bytes, and {MAX_PICTURE:,} are the most. Save it smaller."
        )
    if not _MAGIC.match(data):
        raise SourceImageError("The picture is not a PNG, JPEG or WebP picture. Convert it first.")
    size, _ = _run("check", data)
    return size


def decoded_picture(data: bytes) -> SourceImage:
    """As ``SourceImage.read`` of the same bytes.

    Raises:
        SourceImageError: cut off, damaged, too large, or more than a decoder is given memory and time for.
        WorkerError: no process can be started.
    """
    size, pixels = _run("decode", data)
    return SourceImage(Image.frombytes("RGB", size, pixels), "image", hashlib.sha256(data).hexdigest())


def _run(task: Literal["check", "decode"], data: bytes) -> tuple[tuple[int, int], bytes]:
    # Linear algebra starts a thread for each core, and each takes address space. Keys and tokens are nothing for a decoder.
    environment = {name: os.environ[name] for name in _NEEDED if name in os.environ} | {"OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [*DECODER, task],
            input=data,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
            env=environment,
            start_new_session=True,  # a terminal's Ctrl-C is for the server
        )
    except subprocess.TimeoutExpired:
        raise SourceImageError(f"The picture was not decoded in {PATIENCE:g} s. Save it again, or smaller.") from None
    except OSError as error:
        raise WorkerError(f"The process that decodes pictures cannot start: {error.strerror}.") from error
    head, _, pixels = done.stdout.partition(b"\n")
    if done.returncode:
        _log.warning(
            "A decoder ended with exit code %d: %s", done.returncode, done.stderr[-500:].decode(errors="replace")
        )
        raise SourceImageError(
            "The picture takes more memory or time than decoding may, or the decoder fails at it. Save it again, or smaller."
        )
    said = json.loads(head)
    if "error" in said:
        raise SourceImageError(said["error"])
    size = (int(said["width"]), int(said["height"]))
    if task == "decode" and len(pixels) != 3 * size[0] * size[1]:
        raise SourceImageError("The decoder fails at this picture. Save it again.")
    return size, pixels
