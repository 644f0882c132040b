"""Downloads from a hub on this machine, with everything going wrong that can. They end verified, or say why not."""

from __future__ import annotations

import errno
import http.client
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
from hub import Fault, HubServer, git_sha1, sha256
from hypothesis import given
from hypothesis import strategies as st

import hwaga.weights.download as download_module
import hwaga.weights.hub as hub_module
import hwaga.weights.patience as patience_module
from hwaga import Engine, Settings
from hwaga.card_styles import Style
from hwaga.cards import ASSETS, ModelCard
from hwaga.errors import CheckpointError, DamagedFileError, DiskSpaceError, DownloadError, HubError, SettingsError
from hwaga.hub_sources import Download, LoraSource
from hwaga.model_lookup import built_in_cards
from hwaga.weights.download import fetch
from hwaga.weights.download_plan import Plan, make_plan
from hwaga.weights.hub import Hub, RemoteFile
from hwaga.weights.partial_file import finished_ranges, gaps_of, merge
from hwaga.weights.patience import Pace, Patience, TooSlow, Unanswered
from hwaga.weights.verified import MARKER, Report, Verified, condition, verify

REPO = "Tongyi-MAI/Z-Image-Turbo"
PINNED = "f332072aa78be7aecdf3ee76d5c247082da564a6"
_numbers = random.Random(7)

TRANSFORMER = "transformer/model-00001-of-00002.safetensors"
VAE = "vae/model.safetensors"
MODEL = {
    "model_index.json": b'{"_class_name": "ZImagePipeline"}',
    "scheduler/scheduler_config.json": b"{}",
    "text_encoder/config.json": b'{"a": 1}',
    "text_encoder/model.safetensors": _numbers.randbytes(150_001),
    "tokenizer/tokenizer.json": _numbers.randbytes(30_000),
    "tokenizer/merges.txt": b"",
    TRANSFORMER: _numbers.randbytes(400_000),
    "transformer/model-00002-of-00002.safetensors": _numbers.randbytes(2**16),
    VAE: _numbers.randbytes(90_000),
}
OTHERS = {"README.md": b"# Read", "transformer/model.bin": b"pickle", "vae/run.py": b"print()", ".gitattributes": b"*"}
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING")) or name.lower() in PROXIES]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(download_module, "PIECE", 2**16)
    monkeypatch.setattr(download_module, "CLAIM_EVERY", 0.0)
    monkeypatch.setattr(patience_module, "FIRST_WAIT", 0.001)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        server.push(REPO, MODEL | OTHERS, commit=PINNED)
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


@pytest.fixture
def built_in(tmp_path: Path) -> ModelCard:
    return built_in_cards(tmp_path / "data" / "models")["z-image-turbo"]


@pytest.fixture
def card(built_in: ModelCard) -> ModelCard:
    """The built-in card as its authors would write one that follows a branch, without anybody's styles."""
    return replace(built_in, download=replace(source_of(built_in), revision="main"), styles=MappingProxyType({}))


def source_of(card: ModelCard) -> Download:
    assert card.download is not None
    return card.download


def plan_of(card: ModelCard, **options: Any) -> Plan:
    return make_plan(card, Hub.from_environment(), **options)


def run(card: ModelCard, connections: int = 3, **options: Any) -> Plan:
    """A whole download."""
    hub = Hub.from_environment()
    plan = make_plan(card, hub, **options)
    for _ in fetch(plan, hub, connections=connections):
        pass
    return plan


def interrupt(card: ModelCard, server: HubServer, after: int) -> None:
    """A download that is stopped once the server has sent so many bytes."""
    hub = Hub.from_environment()
    server.limit = server.sent() + after
    with closing(fetch(make_plan(card, hub), hub, connections=2)) as steps:
        for _ in steps:
            if server.sent() >= server.limit:
                break
    server.limit = None


def check_whole(folder: Path, files: dict[str, bytes] = MODEL) -> None:
    """Exactly these files and the marker lie there, and the marker is right about each of them."""
    here = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    assert set(here) == {*files, MARKER}
    for name, data in files.items():
        assert here[name].read_bytes() == data, name
    marker = Verified.read(folder)
    assert marker is not None
    assert marker.missing == ()
    assert {name: file.sha256 for name, file in marker.files.items()} == {n: sha256(data) for n, data in files.items()}


def check_claims(folder: Path, files: dict[str, bytes] = MODEL) -> int:
    """What the states claim is on disk; returns how many bytes they claim."""
    claimed = 0
    for state in folder.rglob("*.part.json"):
        data = files[state.relative_to(folder).as_posix().removesuffix(".part.json")]
        part = state.with_suffix("").read_bytes()
        for start, end in json.loads(state.read_text())["ranges"]:
            assert part[start:end] == data[start:end]
            claimed += end - start
    return claimed


# Plans


def test_a_plan_says_what_is_to_be_fetched(server: HubServer, card: ModelCard) -> None:
    plan = plan_of(card)
    assert (plan.repo, plan.commit) == (REPO, server.branches[REPO, "main"])
    assert {file.remote.path: file.remote.size for file in plan.files} == {n: len(data) for n, data in MODEL.items()}
    assert {file.place for file in plan.files} == {"missing"}
    assert plan.to_fetch == sum(map(len, MODEL.values()))
    assert plan.space_needed == int(plan.to_fetch * 1.1)
    assert plan.left_out == ("transformer/model.bin", "vae/run.py")
    vae = next(file.remote for file in plan.files if file.remote.path == VAE)
    assert vae.sha256 == vae.blob == sha256(MODEL[VAE])
    index = next(file.remote for file in plan.files if file.remote.path == "model_index.json")
    assert (index.sha256, index.blob) == (None, git_sha1(MODEL["model_index.json"]))
    assert server.content_requests() == []
    assert not card.folder.exists()


def test_a_plan_by_revision(server: HubServer, card: ModelCard) -> None:
    commit = server.push(REPO, MODEL, branch="refs/pr/1")
    assert plan_of(card, revision="refs/pr/1").commit == plan_of(card, revision=commit).commit == commit
    with pytest.raises(HubError, match=r"no such revision.*tree/main"):
        plan_of(card, revision="nowhere")


def test_a_pinned_commit_is_the_one_that_is_fetched(server: HubServer, built_in: ModelCard) -> None:
    """Whatever the branch has become; and a hub that has another for it is not believed."""
    assert source_of(built_in).revision == PINNED
    newer = server.push(REPO, MODEL | {VAE: b"newer"})
    assert run(built_in).commit == PINNED
    check_whole(built_in.folder)
    assert plan_of(built_in, revision="main").commit == newer
    server.branches[REPO, PINNED] = newer
    with pytest.raises(HubError, match=f"at {PINNED} and answered with {newer}.*another mirror"):
        plan_of(built_in)


def test_parts(server: HubServer, card: ModelCard) -> None:
    run(card, parts=["vae"])
    assert condition(card) == "partly fetched"
    assert {path.name for path in card.folder.iterdir()} == {"vae", "model_index.json", MARKER}
    run(card, parts=["transformer", "text_encoder"])
    check_whole(card.folder)
    assert condition(card) == "verified"
    assert server.sent(VAE) == len(MODEL[VAE])
    with pytest.raises(DownloadError, match=r"no part 'vea'.*text_encoder, transformer, vae"):
        plan_of(card, parts=["vea"])


def test_a_small_disk_is_refused_before_fetching(
    server: HubServer, card: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(card)
    plan.check_space()
    usage = shutil.disk_usage("/")._replace(free=plan.space_needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskSpaceError, match="--to"):
        plan.check_space()


@pytest.mark.parametrize(
    "path", ["../x.json", "vae/../../x.json", "/etc/x.json", "vae//x.json", "vae\\x.json", "vae/\x00.json", "",
             "verified.json", "vae/x.safetensors.part.json", "vae/" + 300 * "x" + ".json"],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_refused(server: HubServer, card: ModelCard, path: str) -> None:
    server.extra_siblings = [{"rfilename": path, "size": 2, "blobId": git_sha1(b"{}")}]
    with pytest.raises(DownloadError, match="Do not trust"):
        plan_of(card)


@pytest.mark.parametrize(
    "sibling", [{"rfilename": "vae/a.json"}, {"rfilename": 3, "size": 2, "blobId": git_sha1(b"")}, None,
                {"rfilename": "vae/a.json", "size": -1, "blobId": git_sha1(b"")},
                {"rfilename": "vae/a.json", "size": 10**400, "blobId": git_sha1(b"")},
                {"rfilename": "vae/a.json", "size": 1, "blobId": "../../x"}],
)  # fmt: skip
def test_metadata_of_another_form_is_refused(server: HubServer, card: ModelCard, sibling: Any) -> None:
    server.extra_siblings = [sibling]
    with pytest.raises(HubError, match="something else than the files"):
        plan_of(card)


def test_pins_of_a_card(server: HubServer, card: ModelCard) -> None:
    source = source_of(card)
    good = {name: sha256(MODEL[name]) for name in (VAE, "model_index.json")}
    run(replace(card, download=replace(source, sha256=good)))
    check_whole(card.folder)
    with pytest.raises(DamagedFileError, match="pins 0000"):
        plan_of(replace(card, download=replace(source, sha256={VAE: 64 * "0"})))
    with pytest.raises(DownloadError, match="pins"):
        plan_of(replace(card, download=replace(source, sha256={"vae/gone.json": 64 * "0"})))
    (card.folder / "model_index.json").unlink()
    with pytest.raises(DamagedFileError, match=r"model_index\.json arrived damaged twice"):
        run(replace(card, download=replace(source, sha256={"model_index.json": 64 * "0"})))


def test_what_is_not_fetched(server: HubServer, card: ModelCard) -> None:
    with pytest.raises(DownloadError, match="mini is not fetched: it comes with Hwaga"):
        plan_of(built_in_cards(card.folder)["mini"])
    with pytest.raises(DownloadError, match="no file of"):
        plan_of(replace(card, download=replace(source_of(card), include=("unet/*",))))


# Fetching


@pytest.mark.parametrize("connections", [1, 4])
def test_a_model_is_fetched_once(server: HubServer, card: ModelCard, connections: int) -> None:
    run(card, connections)
    check_whole(card.folder)
    assert server.sent() == sum(map(len, MODEL.values()))
    assert all(request.path.count(server.branches[REPO, "main"]) for request in server.content_requests())
    before = len(server.requests)
    assert {file.place for file in run(card).files} == {"verified"}
    assert len(server.requests) == before + 1  # the list of files


def test_progress_never_exceeds_its_total(server: HubServer, card: ModelCard) -> None:
    hub = Hub.from_environment()
    steps = list(fetch(make_plan(card, hub), hub, connections=2))
    assert steps[-1].fetched == steps[-1].to_fetch == sum(map(len, MODEL.values()))
    assert all(0 <= step.fetched <= step.to_fetch and 0 <= step.checked <= step.to_check for step in steps)


@pytest.mark.parametrize("seed", range(4))
def test_dropped_connections_go_on_where_they_broke(server: HubServer, card: ModelCard, seed: int) -> None:
    numbers = random.Random(seed)
    for path in (TRANSFORMER, VAE, "tokenizer/tokenizer.json"):
        server.faults[path].extend(Fault(drop_after=numbers.randrange(20_000)) for _ in range(20))
    run(card)
    check_whole(card.folder)
    dropped = sum(request.sent < request.asked for request in server.requests)
    assert dropped >= 20, "80 and more over the seeds"


def test_a_list_of_files_that_breaks_off_is_asked_for_again(server: HubServer, card: ModelCard) -> None:
    server.metadata_faults.extend([Fault(drop_after=0), Fault(drop_after=300)])
    run(card)
    check_whole(card.folder)
    server.metadata_faults.extend(Fault(drop_after=after) for after in (1, 20, 300))
    with pytest.raises(HubError, match=r"The list of files of .* did not arrive: 127\.0\.0\.1.*3 times in a row"):
        plan_of(card)


def test_a_connection_that_always_drops_is_given_up(server: HubServer, card: ModelCard) -> None:
    server.faults[VAE].extend(Fault(drop_after=0) for _ in range(100))
    with pytest.raises(
        HubError, match=r"vae/model.safetensors did not arrive.*8 times in a row.*what has arrived is kept"
    ):
        run(card)
    check_claims(card.folder)
    server.faults.clear()
    run(card)
    check_whole(card.folder)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_refusals_are_waited_for(server: HubServer, card: ModelCard, status: int) -> None:
    server.metadata_faults.append(Fault(status=status))
    for path in (VAE, "model_index.json"):
        server.faults[path].extend([Fault(status=status, headers={"Retry-After": "0"}), Fault(status=status)])
    run(card)
    check_whole(card.folder)


def test_an_address_of_storage_that_grew_old_is_asked_for_again(server: HubServer, card: ModelCard) -> None:
    server.faults[VAE].append(Fault(status=403))
    run(card)
    check_whole(card.folder)


@pytest.mark.parametrize(
    "wait", ["9" * 5000, "soon", "-1", "Mon, 01 Jan 0001 00:00:00 +2359", "Mon, 32 Jan 99999", "\u00b2"]
)
def test_waits_that_mean_nothing_are_passed_over(server: HubServer, card: ModelCard, wait: str) -> None:
    server.metadata_faults.append(Fault(status=503, headers={"Retry-After": wait}))
    server.faults[VAE].append(Fault(status=503, headers={"Retry-After": wait}))
    run(card)
    check_whole(card.folder)


@pytest.mark.parametrize("header", ["bytes 0-9/" + "9" * 5000, f"bytes {'9' * 5000}-9/10", "bytes */10", ""])
def test_ranges_that_mean_nothing_are_refused(header: str) -> None:
    response = SimpleNamespace(status=206, url="http://hub/x", headers={"Content-Range": header})
    with pytest.raises(Unanswered, match="hub sent another range"):
        hub_module._total(response, 0)


def test_a_long_wait_is_left_to_the_user(server: HubServer, card: ModelCard) -> None:
    server.faults[VAE].append(Fault(status=429, headers={"Retry-After": "3600"}))
    with pytest.raises(HubError, match=r"429 \(Too Many Requests\), and asks to come back in 60 minutes"):
        run(card)


def test_waits_double_and_follow_the_server() -> None:
    patience = Patience(attempts=4)
    waits = [patience.wait_after(Unanswered("x"), "y") / patience_module.FIRST_WAIT for _ in range(3)]
    assert all(0.5 * 2**k <= wait <= 1.5 * 2**k for k, wait in enumerate(waits))
    with pytest.raises(HubError):
        patience.wait_after(Unanswered("x"), "y")
    patience.renew()
    assert patience.wait_after(Unanswered("x", 7.0), "y") == 7.0
    assert hub_module._retry_after("12") == 12
    assert hub_module._retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert (hub_module._retry_after("soon"), hub_module._retry_after(None)) == (None, None)


def test_a_stalled_connection_is_made_anew(server: HubServer, card: ModelCard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "STALL", 0.3)
    server.faults[TRANSFORMER].extend([Fault(stall_after=10_000), Fault(stall_after=0)])
    run(card)
    check_whole(card.folder)


def test_a_connection_that_drips_is_made_anew(
    server: HubServer, card: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then keeps no connection alive."""
    monkeypatch.setattr(patience_module, "WINDOW", 0.2)
    server.faults[TRANSFORMER].extend([Fault(drip=0.05), Fault(drip=0.05)])
    run(card)
    check_whole(card.folder)
    assert server.sent(TRANSFORMER) < len(MODEL[TRANSFORMER]) + 2 * 2**16


def test_a_hub_that_only_drips_is_given_up(server: HubServer, card: ModelCard, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes that come do not renew the patience."""
    monkeypatch.setattr(patience_module, "WINDOW", 0.1)
    server.faults[VAE].extend(Fault(drip=0.02) for _ in range(100))
    with pytest.raises(HubError, match=r"less than 1 KiB a second came .* 8 times in a row"):
        run(card)
    check_claims(card.folder)


@pytest.mark.parametrize(("brought", "enough"), [(1023, False), (1025, True)])
def test_only_the_time_that_is_waited_counts(brought: int, enough: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads slowly, by a limited rate, blames nobody for it."""
    now = 0.0

    class Response(http.client.HTTPResponse):
        def __init__(self) -> None:
            pass

        def read1(self, n: int = -1) -> bytes:
            nonlocal now
            now += 1.0
            return bytes(brought)

    monkeypatch.setattr(time, "monotonic", lambda: now)
    pace, response = Pace(), Response()
    for _ in range(59):
        pace.read(response, 2**20)
        now += 1000.0
    with nullcontext() if enough else pytest.raises(TooSlow, match="less than 1 KiB a second came for 60 seconds"):
        pace.read(response, 2**20)


@pytest.mark.parametrize("where", ["metadata", "data"])
def test_https_does_not_lead_to_http(
    where: str, server: HubServer, card: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub whose address begins with https, on a wire without a certificate."""

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(http.client.HTTPConnection, req)

    monkeypatch.setattr(urllib.request, "HTTPSHandler", Https)
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint.replace("http:", "https:"))
    if where == "metadata":
        server.metadata_faults.append(Fault(status=302, headers={"Location": f"{server.endpoint}/api/models/x"}))
    with pytest.raises(HubError, match="leads from https to http"):
        run(card)
    assert all(request.server == "hub" for request in server.requests)
    assert len(server.requests) == 1 or where == "data"
    assert server.sent(VAE) == 0


def test_closing_does_not_wait_for_a_stalled_connection(server: HubServer, card: ModelCard) -> None:
    server.faults[VAE].append(Fault(stall_after=20_000))
    hub = Hub.from_environment()
    with closing(fetch(make_plan(card, hub), hub, connections=1)) as steps:
        for _ in steps:
            if server.sent(VAE) == 20_000:
                break
    # Not released by the server: the join in close() would have taken until its time-out.
    assert not server.released.is_set()
    assert condition(card) == "partly fetched"
    check_claims(card.folder)
    run(card)
    check_whole(card.folder)


@pytest.mark.parametrize("connections", [1, 4])
def test_a_server_without_ranges(server: HubServer, card: ModelCard, connections: int) -> None:
    server.ranges = False
    server.faults[TRANSFORMER].extend([Fault(), *(Fault(drop_after=100_000) for _ in range(2))])
    run(card, connections)
    check_whole(card.folder)


def test_a_server_without_ranges_that_always_drops_is_given_up(server: HubServer, card: ModelCard) -> None:
    server.ranges = False
    server.faults[TRANSFORMER].extend(Fault(drop_after=100_000) for _ in range(100))
    with pytest.raises(HubError, match="8 times in a row"):
        run(card)


def test_a_server_that_stops_knowing_ranges(server: HubServer, card: ModelCard) -> None:
    interrupt(card, server, 200_000)
    server.ranges = False
    run(card)
    check_whole(card.folder)


def test_a_corrupt_file_is_fetched_once_more(server: HubServer, card: ModelCard) -> None:
    server.faults[VAE].append(Fault(corrupt_at=10))
    server.faults["model_index.json"].append(Fault(corrupt_at=3))
    run(card, connections=1)
    check_whole(card.folder)
    assert server.sent(VAE) == 2 * len(MODEL[VAE])


def test_a_file_that_stays_corrupt_is_refused(server: HubServer, card: ModelCard) -> None:
    server.faults[VAE].extend(Fault(corrupt_at=0) for _ in range(9))
    with pytest.raises(DamagedFileError, match=r"arrived damaged twice.*announced"):
        run(card)
    assert not (card.folder / VAE).exists()
    assert not (card.folder / "vae/model.safetensors.part").exists()
    server.faults.clear()
    run(card)
    check_whole(card.folder)


@pytest.mark.parametrize("length", [10, 1_000_000])
def test_another_length_is_not_taken(server: HubServer, card: ModelCard, length: int) -> None:
    server.faults[VAE].append(Fault(length=length))
    run(card)
    check_whole(card.folder)
    (card.folder / VAE).unlink()
    server.faults[VAE].extend(Fault(length=length) for _ in range(50))
    with pytest.raises(HubError, match=f"{length} bytes in place of 90000"):
        run(card)


def test_a_full_disk(server: HubServer, card: ModelCard, monkeypatch: pytest.MonkeyPatch) -> None:
    real, left = os.pwrite, [600_000]

    def full(descriptor: int, data: bytes, position: int) -> int:
        left[0] -= len(data)
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[: len(data) // 2 + 1], position)  # and never all at once

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DiskSpaceError, match=r"No space left on device.*run it again to go on"):
        run(card)
    assert check_claims(card.folder) > 0
    left[0] = 10**9
    run(card)
    check_whole(card.folder)


FULL = """
mount -t tmpfs -o size=600k none "$1" || exit 77
"$2" -c "$3" download && exit 1
mount -o remount,size=8m none "$1" && "$2" -c "$3" download && exec "$2" -c "$3" models verify
"""


def test_a_disk_that_is_full_in_the_middle(server: HubServer, tmp_path: Path) -> None:
    """A real one, which a state and a marker have to be written to as well, and that gets room again."""
    if shutil.which("unshare") is None:
        pytest.skip("Linux alone has file systems for one process")
    small = tmp_path / "small"
    small.mkdir()
    command = f"import hwaga.weights.download_plan as plan\nplan.Plan.check_space = lambda self: None\n{COMMAND}"
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", FULL, "sh", str(small)]
    environment = {**os.environ, "HWAGA_DATA_DIR": str(small)}
    done = subprocess.run(
        [*inside, sys.executable, command], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode == 77 or "unshare: " in done.stderr:
        pytest.skip("nobody may mount a file system here")
    assert done.returncode == 0, done.stderr
    assert "takes no more (No space left on device). Make room and run it again to go on" in done.stderr
    assert f"{len(MODEL)} files checked, good" in done.stdout
    assert "Traceback" not in done.stderr


def test_nothing_is_claimed_before_the_disk_has_it(
    server: HubServer, card: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().suffix == ".part":
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(DownloadError, match="Input/output error"):
        run(card, parts=["vae"])
    assert [*card.folder.rglob("*.part.json")] == []


def test_a_folder_that_cannot_be_written(server: HubServer, card: ModelCard, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="--to"):
        run(card, folder=tmp_path / "file" / "model")


def test_two_downloads_of_one_model(server: HubServer, card: ModelCard) -> None:
    hub = Hub.from_environment()
    plan = make_plan(card, hub)
    server.pause = 0.001
    with closing(fetch(plan, hub, connections=1)) as steps:
        next(steps)
        with pytest.raises(DownloadError, match="Another download is at work"):
            run(card)
    server.pause = 0.0
    run(card)
    check_whole(card.folder)


def test_a_rate_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    stop = threading.Event()
    monkeypatch.setattr(download_module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(stop, "wait", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    throttle = download_module._Throttle(1000, stop)
    for _ in range(100):
        throttle.take(500)
    assert clock[0] - 100 == pytest.approx(50 - 0.25)


# Going on


@pytest.mark.parametrize("after", [1, 50_000, 300_000, 600_000])
def test_a_stopped_download_goes_on(server: HubServer, card: ModelCard, after: int) -> None:
    interrupt(card, server, after)
    assert condition(card) == "partly fetched"
    kept = check_claims(card.folder)
    marker = Verified.read(card.folder)
    assert marker is not None
    kept += sum(file.size for file in marker.files.values())
    already = len(server.requests)
    plan = run(card)
    check_whole(card.folder)
    asked = sum(request.asked for request in server.requests[already:])
    assert plan.to_fetch == asked == sum(map(len, MODEL.values())) - kept


COMMAND = """
import hwaga.weights.download as download
download.PIECE, download.CLAIM_EVERY = 2**16, 0.0
from hwaga.cli import main
main()
"""


def start(card: ModelCard, *arguments: str) -> subprocess.Popen[str]:
    """The real command in a process of its own, with small pieces."""
    command = [sys.executable, "-c", COMMAND, "download", *arguments]
    environment = {**os.environ, "HWAGA_DATA_DIR": str(card.folder.parents[1])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_until_sent(server: HubServer, bytes_sent: int, process: subprocess.Popen[str]) -> None:
    while server.sent() < bytes_sent and process.poll() is None:
        server.released.wait(0.002)


def test_kill_9_at_any_moment(server: HubServer, card: ModelCard) -> None:
    numbers = random.Random(3)
    files = MODEL | {VAE: numbers.randbytes(1_500_000)}
    server.push(REPO, files, commit=PINNED)
    server.pause = 0.001
    killed, verified = 0, set[str]()
    while killed < 20:
        process = start(card)
        wait_until_sent(server, server.sent() + numbers.randrange(1, 160_000), process)
        process.kill()
        process.communicate()
        if process.returncode == 0:  # it was quicker than the blow
            shutil.rmtree(card.folder)
            continue
        assert process.returncode == -signal.SIGKILL
        killed += 1
        check_claims(card.folder, files)
        marker = Verified.read(card.folder)
        verified = {path for path in (marker.files if marker else ()) if files[path]}
        for path in verified:
            assert sha256((card.folder / path).read_bytes()) == sha256(files[path])
    before = {path: server.sent(path) for path in verified}
    server.pause = 0.0
    process = start(card)
    out, error = process.communicate()
    assert (process.returncode, out) == (0, f"{card.folder}\n"), error
    check_whole(card.folder, files)
    assert before == {path: server.sent(path) for path in verified}


def test_control_c_says_how_to_go_on(server: HubServer, card: ModelCard) -> None:
    server.faults[TRANSFORMER].append(Fault(stall_after=1000))
    process = start(card, "--connections", "2", "--json")
    wait_until_sent(server, 100_000, process)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert "run it again to go on" in error
    assert "Traceback" not in error
    run(card)
    check_whole(card.folder)


def test_a_newer_revision_in_between(server: HubServer, card: ModelCard) -> None:
    interrupt(card, server, 300_000)
    newer = {**MODEL, VAE: _numbers.randbytes(90_000), TRANSFORMER: _numbers.randbytes(400_000)}
    del newer["text_encoder/model.safetensors"]
    commit = server.push(REPO, newer)
    assert run(card).commit == commit
    (card.folder / "text_encoder/model.safetensors").unlink(missing_ok=True)  # the older revision's, if it had arrived
    check_whole(card.folder, newer)
    before = server.sent()
    newest = {**newer, VAE: _numbers.randbytes(90_000)}
    server.push(REPO, newest)
    assert plan_of(card).to_fetch == 90_000
    run(card)
    check_whole(card.folder, newest)
    assert server.sent() == before + 90_000


def test_a_file_that_changes_under_its_commit(server: HubServer, card: ModelCard) -> None:
    hub = Hub.from_environment()
    plan = make_plan(card, hub)
    server.commits[REPO, plan.commit][VAE] = bytes(90_000)
    with pytest.raises(HubError, match=r"another vae/model\.safetensors now than when it was listed"):
        list(fetch(plan, hub))


def test_files_that_lie_there_are_checked_and_kept(server: HubServer, card: ModelCard) -> None:
    for name in (VAE, TRANSFORMER, "model_index.json"):
        path = card.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(MODEL[name])
    (card.folder / TRANSFORMER).write_bytes(bytes(len(MODEL[TRANSFORMER])))
    assert condition(card) == "not verified"
    run(card)
    check_whole(card.folder)
    assert (server.sent(VAE), server.sent("model_index.json")) == (0, 0)
    assert server.sent(TRANSFORMER) == len(MODEL[TRANSFORMER])


@pytest.mark.parametrize("state", ["", "[]", "{}", '{"ranges": [[0, 99999999]]}', '{"ranges": 3}', "\x00"])
def test_an_unreadable_state_claims_nothing(server: HubServer, card: ModelCard, state: str) -> None:
    (card.folder / "vae").mkdir(parents=True)
    (card.folder / "vae/model.safetensors.part").write_bytes(bytes(500))
    (card.folder / "vae/model.safetensors.part.json").write_text(state)
    (card.folder / MARKER).write_text(state)
    run(card)
    check_whole(card.folder)


def test_a_model_that_is_fetched_in_part_does_not_open(server: HubServer, card: ModelCard) -> None:
    run(card, parts=["vae"])
    with pytest.raises(
        CheckpointError, match=r"only partly on this machine: scheduler/.*`hwaga download z-image-turbo`"
    ):
        Engine.open("z-image-turbo", device="cpu", settings=Settings(data_dir=str(card.folder.parents[1])))


@pytest.mark.parametrize(
    ("changes", "ranges"),
    [
        ({}, [(0, 30), (40, 100)]),
        ({"blob": 64 * "1"}, []),
        ({"size": 201}, []),
        ({"ranges": [[0, 30], [40, 101]]}, []),  # more than the part file has
        ({"ranges": [[-1, 30]]}, []),
        ({"ranges": [[30, 30]]}, []),
        ({"ranges": [["0", "30"]]}, []),
        ({"ranges": [[0, math.inf]]}, []),
        ({"ranges": [[0.5, 30]]}, []),
        ({"ranges": [[20, 30], [0, 20], [5, 8]]}, [(0, 30)]),
    ],
)
def test_what_a_state_claims(tmp_path: Path, changes: dict[str, Any], ranges: list[tuple[int, int]]) -> None:
    state = {"blob": 64 * "0", "size": 200, "ranges": [[0, 30], [40, 100]], **changes}
    (tmp_path / "a.part.json").write_text(json.dumps(state))
    (tmp_path / "a.part").write_bytes(bytes(100))
    assert finished_ranges(tmp_path / "a", RemoteFile("a", 200, 64 * "0", 64 * "0")) == ranges


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=8))
def test_ranges_and_gaps_make_the_whole(pairs: list[tuple[int, int]]) -> None:
    merged = merge([(start, start + length) for start, length in pairs])
    gaps = gaps_of(merged, 70)
    assert sorted([*merged, *gaps]) == sorted({*merged, *gaps})
    assert merge([*merged, *gaps]) == [(0, 70)]
    assert {k for a, b in merged for k in range(a, b)} == {k for a, n in pairs for k in range(a, a + n)}


# The cache of Hugging Face's client


def fill_cache(server: HubServer, folder: Path, files: dict[str, bytes], *, shared: bool = False) -> Path:
    """As Hugging Face's client leaves it; large files among those that all repositories share, if it is a new one."""
    repo = folder / f"models--{REPO.replace('/', '--')}"
    snapshot = repo / "snapshots" / server.branches[REPO, "main"]
    for name, data in files.items():
        blob = repo / "blobs" / (sha256(data) if name.endswith(".safetensors") else git_sha1(data))
        blob.parent.mkdir(parents=True, exist_ok=True)
        if shared and name.endswith(".safetensors"):
            other_hash = sha256(b"another kind of hash of " + data)
            store = folder / "blobs" / other_hash[:2] / other_hash
            store.parent.mkdir(parents=True, exist_ok=True)
            store.write_bytes(data)
            blob.symlink_to(os.path.relpath(store, blob.parent))
        else:
            blob.write_bytes(data)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    return repo / "blobs"


@pytest.mark.parametrize("shared", [False, True])
def test_complete_files_of_the_cache_are_linked(
    server: HubServer, card: ModelCard, tmp_path: Path, shared: bool
) -> None:
    blobs = fill_cache(server, tmp_path / "hf" / "hub", MODEL, shared=shared)
    plan = run(card)
    assert plan.to_fetch == 0
    check_whole(card.folder)
    assert server.content_requests() == []
    assert (card.folder / VAE).samefile(blobs / sha256(MODEL[VAE]))
    assert not (card.folder / VAE).is_symlink()


def test_what_the_real_client_has_fetched(server: HubServer, card: ModelCard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's own client and this hub understand each other, and what it leaves is not fetched again."""
    client = "import sys, huggingface_hub; huggingface_hub.snapshot_download(sys.argv[1])"
    subprocess.run([sys.executable, "-c", client, REPO], capture_output=True, check=True)
    before = server.sent()
    assert before >= sum(map(len, (MODEL | OTHERS).values()))
    assert {file.place for file in run(card).files} == {"cached"}
    check_whole(card.folder)
    shutil.rmtree(card.folder)
    asked = len(server.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert {file.place for file in run(card).files} == {"cached"}
    check_whole(card.folder)
    assert (server.sent(), len(server.requests) - asked) == (before, 0)


def test_a_cache_on_another_disk_is_linked_by_name(
    server: HubServer, card: ModelCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    fill_cache(server, tmp_path / "elsewhere", {VAE: MODEL[VAE]})
    run(card)
    check_whole(card.folder)
    assert (card.folder / VAE).is_symlink()
    assert server.sent(VAE) == 0


def test_a_damaged_file_of_the_cache_is_fetched(server: HubServer, card: ModelCard, tmp_path: Path) -> None:
    blobs = fill_cache(server, tmp_path / "hf" / "hub", {VAE: MODEL[VAE], TRANSFORMER: MODEL[TRANSFORMER]})
    damaged = blobs / sha256(MODEL[VAE])
    damaged.write_bytes(bytes(90_000))
    (blobs / sha256(MODEL[TRANSFORMER])).write_bytes(b"short")
    run(card)
    check_whole(card.folder)
    assert damaged.read_bytes() == bytes(90_000)


# Access


def texts_below(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("place", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HOME"])
def test_the_token_goes_to_the_hub_alone(
    server: HubServer, card: ModelCard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    server.token = "hf_secret"
    file = {"HF_TOKEN_PATH": tmp_path / "my-token", "HF_HOME": tmp_path / "hf" / "token"}.get(place)
    if file is None:
        monkeypatch.setenv(place, "hf_secret")
    else:
        file.parent.mkdir(exist_ok=True)
        file.write_text("hf_secret\n")
        monkeypatch.setenv("HF_TOKEN_PATH", str(file))
    run(card)
    check_whole(card.folder)
    by_server = {server_name: set[str]() for server_name in ("hub", "storage")}
    for request in server.requests:
        by_server[request.server].add(request.headers.get("authorization", ""))
    assert by_server == {"hub": {"Bearer hf_secret"}, "storage": {""}}
    assert b"hf_secret" not in texts_below(card.folder)


def test_a_broken_token_is_not_shown(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret\nX-Other: 1")
    with pytest.raises(SettingsError, match="token in HF_TOKEN holds characters") as refused:
        Hub.from_environment()
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("refusal", "token", "says"),
    [
        ((401, "GatedRepo"), "", "Accept them at http.*Turbo, then make a token at http.*settings/tokens and set HF_TOKEN"),
        ((403, "GatedRepo"), "hf_x", "Accept them at http.*then check that the token may read it"),
        ((401, ""), "hf_x", "does not take the token"),
        ((403, ""), "hf_x", "forbids.*Check that the token may read it"),
        ((401, "RepoNotFound"), "", "not there, or private.*set HF_TOKEN"),
        ((404, "RepoNotFound"), "hf_x", "not there, or private.*its owner gave you access"),
        ((404, "EntryNotFound"), "", "no longer there"),
        ((418, ""), "", "HF_ENDPOINT"),
    ],
)  # fmt: skip
def test_refusals_name_the_remedy(
    server: HubServer, card: ModelCard, monkeypatch: pytest.MonkeyPatch,
    refusal: tuple[int, str], token: str, says: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_TOKEN", token)
    server.refusal = refusal
    with pytest.raises(HubError, match=says) as refused:
        plan_of(card)
    assert "hf_x" not in str(refused.value)
    assert len(server.requests) == 1


def test_access_that_ends_in_between(server: HubServer, card: ModelCard) -> None:
    hub = Hub.from_environment()
    plan = make_plan(card, hub)
    server.refusal = (403, "GatedRepo")
    with pytest.raises(HubError, match="Accept them"):
        list(fetch(plan, hub))


def test_offline_with_nothing_here(server: HubServer, card: ModelCard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE forbids .* neither in .*z-image-turbo nor .*Unset it"):
        run(card)
    assert server.requests == []
    assert not card.folder.exists()


def test_offline_with_all_that_was_fetched(
    server: HubServer, styled: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another program has touched a file: its content counts."""
    run(styled)
    before = len(server.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    os.utime(styled.folder / VAE, ns=(1, 1))
    plan = run(styled)
    assert plan.commit == server.branches[REPO, "main"]
    assert {file.place for file in plan.files} == {"verified", "here"}
    assert condition(styled) == "verified"
    check_whole(styled.folder, MODEL | {"loras/line.safetensors": LORA})
    assert run(styled, revision=plan.commit).to_fetch == 0
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        run(styled, revision="another")
    (styled.folder / VAE).write_bytes(bytes(len(MODEL[VAE])))
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        run(styled)
    assert len(server.requests) == before
    assert condition(styled) == "partly fetched"


@pytest.mark.parametrize("shared", [False, True])
def test_offline_with_all_in_the_cache(
    server: HubServer, card: ModelCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    blobs = fill_cache(server, tmp_path / "hf" / "hub", MODEL | OTHERS, shared=shared)
    (blobs.parent / "refs").mkdir()
    (blobs.parent / "refs" / "main").write_text(server.branches[REPO, "main"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run(card)
    check_whole(card.folder)
    assert server.requests == []


def test_older_names_of_variables(tmp_path: Path) -> None:
    """Those that Hugging Face's client still reads; the newer ones count more."""
    older = {
        "HUGGING_FACE_HUB_TOKEN": "hf_old", "HUGGINGFACE_HUB_CACHE": str(tmp_path / "old"), "TRANSFORMERS_OFFLINE": "1",
    }  # fmt: skip
    hub = Hub.from_environment(older)
    assert (hub.cache, hub.offline) == (tmp_path / "old", True)
    newer = {"HF_TOKEN": "hf\nnew", "HF_HUB_CACHE": str(tmp_path / "new"), "HF_HUB_OFFLINE": "0"}
    assert Hub.from_environment(older | newer | {"HF_TOKEN": "hf_new"}).cache == tmp_path / "new"
    assert not Hub.from_environment(older | newer | {"HF_TOKEN": "hf_new"}).offline
    with pytest.raises(SettingsError, match="token in HF_TOKEN holds"):
        Hub.from_environment(older | newer)
    with pytest.raises(SettingsError, match="token in HUGGING_FACE_HUB_TOKEN holds"):
        Hub.from_environment(older | {"HUGGING_FACE_HUB_TOKEN": "hf\nold"})


@pytest.mark.parametrize(
    ("lacks", "says"),
    [
        (VAE, "the weights of its vae"),
        ("scheduler/scheduler_config.json", r"scheduler/\*"),
        (TRANSFORMER, "transformer/model-00001-of-00002"),
    ],
)
def test_offline_with_something_missing(
    lacks: str, says: str, server: HubServer, card: ModelCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the cache first, and then what the marker says is missing."""
    shards = {name: path.removeprefix("transformer/") for name, path in enumerate(MODEL) if "of-00002" in path}
    index = {"transformer/model.safetensors.index.json": json.dumps({"weight_map": shards}).encode()}
    index["vae/config.json"] = b"{}"
    server.push(REPO, MODEL | index)
    blobs = fill_cache(server, tmp_path / "hf" / "hub", {n: d for n, d in (MODEL | index).items() if n != lacks})
    (blobs.parent / "refs").mkdir()
    (blobs.parent / "refs" / "main").write_text(server.branches[REPO, "main"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match=rf"HF_HUB_OFFLINE forbids the network, and {says}"):
        run(card)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    run(card)
    shutil.rmtree(blobs.parent)
    (card.folder / "tokenizer/merges.txt").unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match=r"network, and tokenizer/merges\.txt"):
        run(card)


@pytest.mark.parametrize("endpoint", ["huggingface.co", "ftp://hub", "http://", "http://hub:port", "http://[hub"])
def test_an_endpoint_must_be_an_address(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(SettingsError, match="HF_ENDPOINT must be an address"):
        Hub.from_environment()


def test_no_answer_is_said(card: ModelCard, monkeypatch: pytest.MonkeyPatch) -> None:
    with HubServer() as gone:
        monkeypatch.setenv("HF_ENDPOINT", gone.endpoint)
    with pytest.raises(HubError, match=r"127\.0\.0\.1.*refused.*3 times in a row"):
        plan_of(card)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://hub/x", "http://[", "/api/models/again"])
def test_redirects_that_lead_nowhere(server: HubServer, card: ModelCard, target: str) -> None:
    server.metadata_faults.extend(Fault(status=302, headers={"Location": target}) for _ in range(40))
    with pytest.raises(HubError):
        plan_of(card)


def test_a_repository_that_was_renamed(server: HubServer, card: ModelCard, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub leads to its new name, at the same place, where the token goes too."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.token = "hf_secret"
    server.metadata_faults.append(
        Fault(status=307, headers={"Location": f"/api/models/{REPO}/revision/main?blobs=true"})
    )
    run(replace(card, download=replace(source_of(card), revision="old")))
    check_whole(card.folder)


def test_a_sign_in_page_is_no_list(server: HubServer, card: ModelCard) -> None:
    server.metadata_faults.append(Fault())
    with pytest.raises(HubError, match="sign-in page"):
        plan_of(card)


def test_proxies_are_used(server: HubServer, card: ModelCard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("http_proxy", server.endpoint)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    run(card)
    check_whole(card.folder)


# Verifying


def report_of(folder: Path) -> Report:
    *_, last = verify(folder)
    assert isinstance(last, Report)
    return last


def test_verifying_finds_what_is_wrong(server: HubServer, card: ModelCard) -> None:
    assert condition(card) == "not on this machine"
    run(card)
    assert report_of(card.folder).good
    vae = card.folder / VAE
    status = vae.stat()
    vae.write_bytes(MODEL[VAE][:-1] + b"x")
    os.utime(vae, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a failing disk would
    assert condition(card) == "verified"
    (card.folder / "scheduler/scheduler_config.json").unlink()
    (card.folder / "notes.txt").write_text("mine")
    report = report_of(card.folder)
    assert (report.damaged, report.missing, report.extra) == (
        (VAE,), ("scheduler/scheduler_config.json",), ("notes.txt",),
    )  # fmt: skip
    assert condition(card) == "partly fetched"
    before = server.sent()
    run(card)
    assert report_of(card.folder) == replace(report_of(card.folder), damaged=(), missing=())
    assert server.sent() - before == len(MODEL[VAE]) + 2


def test_a_touched_file_is_not_verified_until_it_is_hashed(server: HubServer, card: ModelCard) -> None:
    run(card)
    (card.folder / VAE).write_bytes(MODEL[VAE])
    os.utime(card.folder / VAE, ns=(1, 1))
    assert condition(card) == "not verified"
    assert report_of(card.folder).good
    assert condition(card) == "verified"


@pytest.mark.parametrize(
    ("key", "value"),
    [("size", "1"), ("size", True), ("size", -1), ("mtime_ns", None), ("sha256", 3), ("sha256", "x"), ("more", 1)],
)
def test_a_damaged_marker_is_refused(server: HubServer, card: ModelCard, key: str, value: object) -> None:
    run(card)
    path = card.folder / MARKER
    values = json.loads(path.read_text())
    values["files"][VAE][key] = value
    path.write_text(json.dumps(values))
    assert condition(card) == "not verified"
    with pytest.raises(DownloadError, match=r"verified\.json is damaged.*`hwaga download`"):
        report_of(card.folder)
    before = server.sent(".safetensors")
    run(card)
    check_whole(card.folder)
    assert server.sent(".safetensors") == before


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "", "a//b", "a\0", "\ud800", 3])
def test_a_marker_names_files_of_its_folder_alone(tmp_path: Path, path: object) -> None:
    (tmp_path / MARKER).write_text(json.dumps({"repo": "r", "revision": "c", "files": {}, "missing": [path]}))
    assert Verified.read(tmp_path) is None


def test_there_must_be_something_to_compare_with(card: ModelCard) -> None:
    with pytest.raises(DownloadError, match="hwaga download"):
        report_of(ASSETS / "mini")


# Several repositories


LORA_REPO, LORA = "somebody/lines", _numbers.randbytes(40_000)


def with_style(card: ModelCard, **changes: Any) -> ModelCard:
    source = LoraSource(LORA_REPO, "v2/line.safetensors", "main", "CC-BY-4.0", None)
    style = Style(MappingProxyType({"en": "Lines"}), "loras/line.safetensors", source=replace(source, **changes))
    return replace(card, styles=MappingProxyType({"line": style}))


@pytest.fixture
def styled(server: HubServer, card: ModelCard) -> ModelCard:
    server.push(LORA_REPO, {"v2/line.safetensors": LORA, "v1/line.safetensors": b"old", "README.md": b"# Read"})
    return with_style(card)


def test_a_style_brings_its_lora(server: HubServer, styled: ModelCard) -> None:
    plan = run(styled)
    check_whole(styled.folder, MODEL | {"loras/line.safetensors": LORA})
    assert plan.licenses == (("z-image-turbo", REPO, "Apache-2.0"), ("line", LORA_REPO, "CC-BY-4.0"))
    assert plan.repo == REPO
    assert condition(styled) == "verified"
    assert report_of(styled.folder).extra == ()
    before = server.sent()
    assert {file.place for file in run(styled).files} == {"verified"}
    assert server.sent() == before


def test_styles_are_a_part(server: HubServer, styled: ModelCard) -> None:
    licenses = run(styled, parts=["vae"]).licenses
    assert licenses == (("z-image-turbo", REPO, "Apache-2.0"),)
    assert not (styled.folder / "loras").exists()
    assert condition(styled) == "partly fetched"
    run(styled, parts=["styles"])
    assert (styled.folder / "loras/line.safetensors").read_bytes() == LORA
    assert not (styled.folder / TRANSFORMER).exists()
    run(styled)
    check_whole(styled.folder, MODEL | {"loras/line.safetensors": LORA})
    with pytest.raises(DownloadError, match=r"no part 'styles'.*text_encoder, transformer, vae\."):
        plan_of(replace(styled, styles=MappingProxyType({})), parts=["styles"])


def test_a_model_is_whole_without_its_styles(server: HubServer, styled: ModelCard) -> None:
    """Nobody has to take somebody else's LoRAs; those that are here stay known."""
    parts = ["text_encoder", "transformer", "vae"]
    run(styled, parts=parts)
    check_whole(styled.folder)
    assert condition(styled) == "verified"
    run(styled)
    run(styled, parts=parts)
    check_whole(styled.folder, MODEL | {"loras/line.safetensors": LORA})


def test_styles_may_share_a_lora(server: HubServer, styled: ModelCard) -> None:
    """At another weight, or in other words. It is one file."""
    (style,) = styled.styles.values()
    both = replace(styled, styles=MappingProxyType({"line": style, "thin": replace(style, weight=0.5)}))
    plan = run(both)
    assert [file.remote.path for file in plan.files].count("loras/line.safetensors") == 1
    check_whole(both.folder, MODEL | {"loras/line.safetensors": LORA})
    assert server.sent("line.safetensors") == len(LORA)


def test_a_style_that_is_not_given_out_any_more(server: HubServer, styled: ModelCard) -> None:
    """The model is fetched all the same: it does not hang on a repository of somebody else's."""
    gone = with_style(styled, repo="somebody/gone")
    plan = run(gone)
    check_whole(gone.folder)
    assert condition(gone) == "verified"
    assert [name for name, _ in plan.unavailable] == ["line"]
    assert "somebody/gone is not there, or private" in plan.unavailable[0][1]
    assert [repo for _, repo, _ in plan.licenses] == [REPO]
    with pytest.raises(HubError, match="somebody/gone is not there, or private"):
        plan_of(gone, parts=["styles"])
    assert run(styled).unavailable == ()
    check_whole(styled.folder, MODEL | {"loras/line.safetensors": LORA})


@pytest.fixture
def drawable(server: HubServer, styled: ModelCard) -> ModelCard:
    """A card whose model can be opened; its files are here, and neither they nor its style's LoRA were fetched yet."""
    paths = [path for path in (ASSETS / "mini").rglob("*") if path.is_file() and path.parent.name != "loras"]
    files = {path.relative_to(ASSETS / "mini").as_posix(): path for path in paths if path.name != "card.toml"}
    server.push(REPO, {name: path.read_bytes() for name, path in files.items()})
    for name, path in files.items():
        (styled.folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, styled.folder / name)
    return styled


def check_opens(card: ModelCard) -> None:
    assert condition(card) == "verified"
    with Engine.open(card, device="cpu") as engine:
        assert engine.card is card


LINE = "loras/line.safetensors"


def refuse(server: HubServer, how: str) -> None:
    """The LoRA's repository is listed as ever, and does not give its file out."""
    if how == "gated":
        server.gated[LORA_REPO] = (403, "GatedRepo")
    elif how == "gone":
        server.gated[LORA_REPO] = (404, "EntryNotFound")
    elif how == "damaged":
        server.faults["v2/line.safetensors"].extend([Fault(corrupt_at=7)] * 20)
    else:
        server.faults["v2/line.safetensors"].extend([Fault(drop_after=0)] * 100)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("gated", "somebody/lines is given out on conditions"),
        ("gone", "somebody/lines listed is no longer there"),
        ("damaged", "arrived damaged twice"),
        ("silent", "did not arrive"),
    ],
)
def test_a_style_that_is_listed_and_not_given_out(
    server: HubServer, styled: ModelCard, monkeypatch: pytest.MonkeyPatch, how: str, why: str
) -> None:
    """The model is fetched all the same, and the last progress tells of the style; unless styles were asked for."""
    monkeypatch.setattr(download_module, "PIECE", 10_000)
    refuse(server, how)
    hub = Hub.from_environment()
    plan = make_plan(styled, hub)
    assert plan.unavailable == ()
    progress = [*fetch(plan, hub, connections=3)][-1]
    ((name, reason),) = progress.unavailable
    assert name == "line"
    assert why in reason
    assert progress.fetched == progress.to_fetch == sum(map(len, MODEL.values()))
    marker = Verified.read(styled.folder)
    assert marker is not None
    assert (set(marker.files), marker.missing, marker.absent_styles) == (set(MODEL), (), (LINE,))
    assert condition(styled) == "verified"
    if how == "gated":
        with pytest.raises(HubError, match=why):
            run(styled, parts=["styles"])
        assert condition(styled) == "verified"
    server.gated.clear()
    server.faults.clear()
    run(styled)
    check_whole(styled.folder, MODEL | {LINE: LORA})


def test_a_model_opens_whatever_becomes_of_its_lora(
    server: HubServer, drawable: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused, broken off, deleted, and without the network."""
    refuse(server, "gated")
    run(drawable)
    check_opens(drawable)
    server.gated.clear()
    monkeypatch.setattr(download_module, "PIECE", 10_000)
    interrupt(drawable, server, after=15_000)
    assert (drawable.folder / f"{LINE}.part").is_file(), "it was in the middle of the LoRA"
    check_opens(drawable)
    run(drawable, parts=["vae"])
    assert (drawable.folder / f"{LINE}.part").is_file(), "what has arrived is kept"
    before = server.sent()
    run(drawable)
    assert server.sent() - before < len(LORA)
    assert (drawable.folder / LINE).read_bytes() == LORA
    (drawable.folder / LINE).unlink()
    check_opens(drawable)
    for _ in range(2):
        report = report_of(drawable.folder)
        assert report.good
        assert (report.damaged, report.missing, report.absent_styles, report.extra) == ((), (), (LINE,), ())
    check_opens(drawable)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ((name, reason),) = run(drawable).unavailable
    assert name == "line"
    assert "HF_HUB_OFFLINE forbids" in reason
    with pytest.raises(HubError, match="HF_HUB_OFFLINE forbids"):
        run(drawable, parts=["styles"])
    check_opens(drawable)


def test_a_damaged_lora_is_told_of_and_fetched_again(server: HubServer, styled: ModelCard) -> None:
    run(styled)
    (styled.folder / LINE).write_bytes(bytes(len(LORA)))
    assert condition(styled) == "not verified"
    report = report_of(styled.folder)
    assert (report.good, report.damaged, report.missing) == (False, (LINE,), ())
    assert condition(styled) == "verified", "the model is"
    run(styled)
    check_whole(styled.folder, MODEL | {LINE: LORA})


@pytest.mark.parametrize("outage", ["listing", "file", "others asked for"])
def test_a_lora_that_was_verified_stays_so(server: HubServer, styled: ModelCard, outage: str) -> None:
    """Also while the hub has a newer one, and keeps that to itself."""
    run(styled)
    server.push(LORA_REPO, {"v2/line.safetensors": LORA[::-1]})
    if outage == "listing":
        server.branches.pop((LORA_REPO, "main"))
    elif outage == "file":
        refuse(server, "gated")
    before = len(server.requests)
    run(styled, parts=["vae"] if outage == "others asked for" else [])
    check_whole(styled.folder, MODEL | {LINE: LORA})
    asked = [request.path for request in server.requests[before:]]
    assert any(LORA_REPO in path for path in asked) == (outage != "others asked for")


def test_a_marker_that_does_not_tell_styles_apart(server: HubServer, styled: ModelCard) -> None:
    """As earlier versions wrote it."""
    run(styled)
    values = json.loads((styled.folder / MARKER).read_text())
    del values["styles"], values["files"][LINE]
    (styled.folder / MARKER).write_text(json.dumps({**values, "missing": [LINE]}))
    (styled.folder / LINE).unlink()
    assert condition(styled) == "verified"
    assert report_of(styled.folder).absent_styles == (LINE,)
    long = f"loras/{300 * 'x'}.safetensors"  # no file system has such a name
    known = {**values["files"], long: {"size": 1, "sha256": 64 * "0", "mtime_ns": 1}}
    (styled.folder / MARKER).write_text(json.dumps({**values, "files": known, "missing": []}))
    assert condition(styled) == "verified"


def test_a_lora_that_is_not_what_the_card_says(server: HubServer, styled: ModelCard, card: ModelCard) -> None:
    with pytest.raises(DamagedFileError, match=r"v2/line\.safetensors of somebody/lines has sha256 .* pins 0000"):
        plan_of(with_style(card, sha256=64 * "0"), parts=["styles"])
    clashing = replace(styled.styles["line"], lora=VAE)
    with pytest.raises(DownloadError, match=rf"puts somebody/lines where the model has a file of its own, at {VAE}"):
        plan_of(replace(styled, styles=MappingProxyType({"line": clashing})))
    with pytest.raises(DownloadError, match=r"has no v3/line\.safetensors, which a style"):
        plan_of(with_style(card, file="v3/line.safetensors"), parts=["styles"])
    for other in (with_style(card, sha256=64 * "0"), with_style(card, file="v3/line.safetensors")):
        assert [name for name, _ in plan_of(other).unavailable] == ["line"], "the model is whole without"
    run(with_style(card, sha256=sha256(LORA)))
    check_whole(card.folder, MODEL | {"loras/line.safetensors": LORA})


def test_files_of_another_repository(server: HubServer, card: ModelCard) -> None:
    """As ComfyUI's repository has no tokenizer; a file that both have is the first one's."""
    tokenizer = {
        "tokenizer/tokenizer.json": b"theirs",
        "tokenizer/special.txt": b"words",
        "vae/other.safetensors": b"no",
    }
    commit = server.push("somebody/words", tokenizer)
    source = source_of(card)
    include = tuple(pattern for pattern in source.include if pattern != "tokenizer/*")
    also = Download("somebody/words", "main", ("tokenizer/*",), {}, {})
    both = replace(card, download=replace(source, include=include, also=(also,)))
    expected = {name: data for name, data in MODEL.items() if not name.startswith("tokenizer/")}
    expected |= {name: data for name, data in tokenizer.items() if name.startswith("tokenizer/")}
    interrupt(both, server, 200_000)
    run(both)
    check_whole(both.folder, expected)
    assert any(f"/somebody/words/resolve/{commit}/tokenizer/special.txt" in request.path for request in server.requests)
    first = replace(card, download=replace(source, also=(also,)))
    run(first)
    assert (first.folder / "tokenizer/tokenizer.json").read_bytes() == MODEL["tokenizer/tokenizer.json"]
    with pytest.raises(DownloadError, match=r"somebody/words at .* has no file of"):
        plan_of(replace(card, download=replace(source, also=(replace(also, include=("x/*",)),))))


def test_files_of_another_repository_in_a_folder(
    server: HubServer, card: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the autoencoder that SDXL runs in float16 is a repository of its own, with its files at the top."""
    vae = {"config.json": b"{}", "diffusion_pytorch_model.safetensors": b"tuned", "README.md": b"no"}
    commit = server.push("somebody/vae", vae)
    source = source_of(card)
    include = tuple(pattern for pattern in source.include if pattern != "vae/*")
    also = Download("somebody/vae", "main", ("config.json", "*.safetensors"), {}, {}, into="vae", license="MIT")
    both = replace(card, download=replace(source, include=include, also=(also,)))
    assert (f"{both.name}, vae", "somebody/vae", "MIT") in plan_of(both).licenses
    expected = {name: data for name, data in MODEL.items() if not name.startswith("vae/")}
    expected |= {f"vae/{name}": vae[name] for name in ("config.json", "diffusion_pytorch_model.safetensors")}
    run(both)
    check_whole(both.folder, expected)
    assert any(f"/somebody/vae/resolve/{commit}/config.json" in request.path for request in server.requests)
    assert {file.place for file in plan_of(both).files} == {"verified"}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert {file.remote.path for file in plan_of(both).files} == set(expected)


def test_the_built_in_cards_name_what_makes_up_a_model(server: HubServer, card: ModelCard, tmp_path: Path) -> None:
    """Files of the published repositories' names, as far as the cards go."""
    cards = built_in_cards(tmp_path / "data" / "models")
    loras = {
        "tarn59/pixel_art_style_lora_z_image_turbo": "pixel_art_style_z_image_turbo.safetensors",
        "ostris/z_image_turbo_childrens_drawings": "z_image_turbo_childrens_drawings.safetensors",
    }
    sources = {style.source.repo: style.source for style in cards["z-image-turbo"].styles.values() if style.source}
    assert {repo: source.file for repo, source in sources.items()} == loras
    for repo, file in loras.items():
        server.push(repo, {file: repo.encode(), "README.md": b"-"}, commit=sources[repo].revision)
    styles = {f"loras/{file}": repo.encode() for repo, file in loras.items()}
    turbo = cards["z-image-turbo"]
    plan = run(turbo)
    check_whole(turbo.folder, MODEL | styles)
    assert plan.commit == PINNED
    assert plan.licenses[1:] == tuple(
        (name, repo, "Apache-2.0") for name, repo in zip(("pixel_art", "childrens_drawing"), loras, strict=True)
    )
    server.push("dimitribarbot/Z-Image-Turbo-BF16", MODEL | OTHERS)
    run(cards["z-image-turbo-bf16"])
    check_whole(cards["z-image-turbo-bf16"].folder, MODEL | styles)
    comfy = cards["z-image-turbo-comfyui"]
    weights = {file.relative_to(comfy.folder).as_posix(): file.name.encode() for file in comfy.files}
    server.push(
        "Comfy-Org/z_image_turbo",
        weights | {"split_files/diffusion_models/z_image_turbo_nvfp4.safetensors": b"-"},
        commit=source_of(comfy).revision,
    )
    run(comfy)
    tokenizer = {name: data for name, data in MODEL.items() if name.startswith("tokenizer/")}
    check_whole(comfy.folder, weights | tokenizer | styles)
    assert comfy.present
    assert condition(comfy) == "verified"


def test_the_built_in_card_of_sdxl(server: HubServer, card: ModelCard, tmp_path: Path) -> None:
    """float16 files alone, out of a repository of many formats, and the autoencoder that goes with them from another."""
    sdxl = built_in_cards(tmp_path / "data" / "models")["sdxl"]
    wanted = {name: name.encode() for name in (
        "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors", "text_encoder_2/config.json", "text_encoder_2/model.fp16.safetensors",
        "tokenizer/merges.txt", "tokenizer/vocab.json", "tokenizer/tokenizer_config.json", "tokenizer_2/merges.txt",
        "tokenizer_2/vocab.json", "unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors",
    )}  # fmt: skip
    others = ("sd_xl_base_1.0.safetensors", "text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors",
              "text_encoder/openvino_model.xml", "unet/model.onnx", "vae/config.json",
              "vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors",
              "vae_1_0/config.json", "README.md")  # fmt: skip
    pins = {each.repo: each.revision for each in (source_of(sdxl), *source_of(sdxl).also)}
    base = "stabilityai/stable-diffusion-xl-base-1.0"
    server.push(base, wanted | dict.fromkeys(others, b"-"), commit=pins[base])
    tuned = {"config.json": b"{}", "diffusion_pytorch_model.safetensors": b"tuned"}
    fixed = "madebyollin/sdxl-vae-fp16-fix"
    server.push(fixed, tuned | {"sdxl_vae.safetensors": b"-", "README.md": b"-"}, commit=pins[fixed])
    licenses = plan_of(sdxl).licenses
    assert [(repo, "openrail++" in text or text) for _, repo, text in licenses] == [
        ("stabilityai/stable-diffusion-xl-base-1.0", True), ("madebyollin/sdxl-vae-fp16-fix", "MIT"),
    ]  # fmt: skip
    run(sdxl)
    check_whole(sdxl.folder, wanted | {f"vae/{name}": data for name, data in tuned.items()})
    assert sdxl.present
    parts = {"text_encoder": "text_encoder", "unet": "unet", "vae": "vae"}
    for part, folder in parts.items():
        paths = {file.remote.path for file in plan_of(sdxl, parts=[part]).files}
        assert {path.split("/")[0] for path in paths if path.endswith(".safetensors")} == {folder}
