"""What becomes of pictures that mean harm: a clear refusal, or the picture; and the processes go on, no larger than before."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from dispatching import REAL, dispatching, ended, run
from hostile_pictures import Sent, hostile_pictures

from hwaga.errors import SourceImageError, WorkerError
from hwaga.memory.budget import process_memory
from hwaga.memory.trim import trim_host_memory
from hwaga.server import process, strange_pictures
from hwaga.server.health import kilobyte_lines
from hwaga.server.strange_pictures import check_picture, decoded_picture
from hwaga.source_image import SourceImage

if TYPE_CHECKING:
    from conftest import Running

ALL = list(hostile_pictures())
GROWTH = 48 * 2**20
"""Bytes that a process may be larger by afterwards: a quarter of the largest picture's pixels."""


def test_there_are_enough_of_them() -> None:
    assert len({sent.name for sent in ALL}) == len(ALL) >= 60
    assert sum(sent.size is None for sent in ALL) >= 30


def memory() -> int:
    gc.collect()
    trim_host_memory()
    found = process_memory()
    if found is None:
        pytest.skip("this system does not tell what memory a process has")
    return found.rss_anon


def test_each_is_answered(server: Running) -> None:
    server.ready()
    pid = server.dispatcher.processes[0][0]
    before, wrong = memory(), []
    for sent in ALL:
        answer = server.client.post("/v1/jobs", data={"prompt": "a cat"}, files={"image": sent.data})
        if sent.size is not None:
            if answer.status_code != 202 or server.ended(answer.json()["id"])["status"] != "succeeded":
                wrong.append((sent.name, answer.text))
            continue
        if answer.status_code != 400:
            wrong.append((sent.name, answer.text))
            continue
        error = answer.json()["error"]
        clear = error["param"] == "image" and error["code"] == "source_image" and len(error["message"]) > 30
        if not clear or "()" in error["message"]:
            wrong.append((sent.name, answer.text))
    assert wrong == []
    assert server.dispatcher.processes[0][0] == pid
    assert memory() - before < GROWTH


def test_each_picture_is_the_one_that_was_sent() -> None:
    decoded_picture(ALL[0].data)
    before = memory()
    for sent in (sent for sent in ALL if sent.size is not None):
        found = decoded_picture(sent.data)
        assert (found.name, found.image.mode, found.image.size) == ("image", "RGB", sent.size), sent.name
        corner: Any = found.image.getpixel((0, 0))
        assert max(abs(a - b) for a, b in zip(corner, sent.corner, strict=True)) <= sent.within, (sent.name, corner)
        if found.image.width * found.image.height < 10**6:
            here = SourceImage.read(sent.data)
            assert (found, found.image.tobytes()) == (here, here.image.tobytes()), sent.name
        del found
    assert memory() - before < GROWTH


def test_the_real_worker_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the front let them through."""
    monkeypatch.setattr(process, "WORKER", REAL)
    names = (
        "png, rows missing",
        "png that is a bomb",
        "png, text that is a bomb",
        "jpeg, cut off",
        "webp, a head alone",
        "svg",
    )
    bad = [sent for sent in ALL if sent.name in names]
    good = [sent for sent in ALL if sent.name in ("png, interlaced", "jpeg, cmyk", "png, the largest there may be")]
    body = {"request": {"prompt": "a red apple", "steps": 1, "seed": 7, "width": 256, "height": 256, "strength": 0.5}}

    async def test() -> None:
        async with dispatching(tmp_path, models=["mini"], devices=("cpu",), dtype="float32") as dispatcher:

            async def drawn(sent: Sent) -> str:
                job = await dispatcher.submit("image2image", body, source=sent.data)
                done = await ended(dispatcher, job)
                return done.status if done.error is None else done.error[0]

            for sent in good:  # what is made once at the first job of a kind is no growth
                assert await drawn(sent) == "succeeded"
            pid = dispatcher.processes[0][0]
            before = kilobyte_lines(pid).get("RssAnon", 0)
            for sent in [*bad, *good]:
                assert await drawn(sent) == ("succeeded" if sent.size else "SourceImageError"), sent.name
            assert dispatcher.processes[0][0] == pid
            assert kilobyte_lines(pid).get("RssAnon", 0) - before < GROWTH

    run(test)


def faulty(tmp_path: Path, code: str) -> tuple[str, ...]:
    script = tmp_path / "decoder.py"
    script.write_text(code)
    return (sys.executable, str(script))


@pytest.mark.parametrize(
    "code",
    [
        "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        "import sys; sys.exit(1)",
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 1))\nwhile True: pass",
        "print('{\"width\": 100, \"height\": 100}')\nprint('too few')",
        "import time; time.sleep(1000)",
    ],
)
def test_a_decoder_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    if "sleep" in code:
        monkeypatch.setattr(strange_pictures, "PATIENCE", 0.5)
    monkeypatch.setattr(strange_pictures, "DECODER", faulty(tmp_path, code))
    with pytest.raises(SourceImageError, match="Save it again"):
        decoded_picture(ALL[0].data)


def test_a_decoder_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strange_pictures, "DECODER", (str(tmp_path / "nothing"),))
    with pytest.raises(WorkerError, match="cannot start") as raised:
        check_picture(ALL[0].data)
    assert str(tmp_path) not in str(raised.value)


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not limit address space")
@pytest.mark.parametrize(
    ("name", "value", "signal_"), [("MAX_ADDRESS_SPACE", 300 * 2**20, 0), ("MAX_CPU", 1, signal.SIGKILL)]
)
def test_memory_and_time_are_limited(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    value: int,
    signal_: int,
) -> None:
    """The limits are the kernel's: a picture that is fine needs more than so little."""
    code = f"from hwaga.server import decoder\ndecoder.{name} = {value}\n"
    if signal_:
        code += "import hwaga.source_image as module\n"
        code += "def busy(data):\n    while True: pass\nmodule.SourceImage.read = busy\n"
    monkeypatch.setattr(strange_pictures, "DECODER", faulty(tmp_path, code + "decoder.main()\n"))
    large = next(sent for sent in ALL if sent.name == "png, the largest there may be")
    with pytest.raises(SourceImageError, match="more memory or time than decoding may"):
        decoded_picture(large.data)
    assert ("MemoryError" in caplog.text) if not signal_ else (f"exit code {-signal_}" in caplog.text)


def test_what_a_decoder_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a secret")
    seen = tmp_path / "seen"
    code = (
        f"import os\nopen({str(seen)!r}, 'w').write(repr(dict(os.environ)))\nprint('{{\"width\": 1, \"height\": 1}}')"
    )
    monkeypatch.setattr(strange_pictures, "DECODER", faulty(tmp_path, code))
    assert check_picture(ALL[0].data) == (1, 1)
    assert "PATH" in seen.read_text()
    assert "a secret" not in seen.read_text()
    assert "HWAGA" not in seen.read_text()


def test_what_is_refused_without_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(strange_pictures, "_run", never)
    check: Callable[[bytes], object] = check_picture
    for data in (b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + bytes(40 * 2**20)):
        with pytest.raises(SourceImageError):
            check(data)
