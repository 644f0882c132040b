"""The systemd unit and the Dockerfile say what is so: neither can be started in a test, so what they name is looked up."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer

from hwaga.cli.app import app
from hwaga.cli.serve import serve as serve_command
from hwaga.families import FAMILIES
from hwaga.server.listener import DRAIN, HANG_UP
from hwaga.settings import Settings

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy/hwaga.service"
DOCKERFILE = ROOT / "deploy/Dockerfile"


def unit() -> dict[str, list[str]]:
    """Its settings, which may repeat."""
    found = defaultdict(list)
    for line in UNIT.read_text().splitlines():
        name, sign, value = line.partition("=")
        if sign and not line.startswith("#"):
            found[name].append(value)
    return found


def dockerfile() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^#.*\n", "", DOCKERFILE.read_text()))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def of(kind: str) -> list[str]:
    return [rest for word, rest in dockerfile() if word == kind]


def assert_it_starts(command: list[str]) -> None:
    """The arguments are ones that ``hwaga serve`` takes."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert Path(command[0]).name in scripts
    assert command[1] == "serve"
    typer.main.get_command(app).commands["serve"].make_context("serve", command[2:])  # type: ignore[attr-defined]


def assert_known(variables: dict[str, str]) -> None:
    for name in (name for name in variables if name.startswith("HWAGA_")):
        assert name.removeprefix("HWAGA_").lower() in {field.name for field in fields(Settings)}


def test_what_is_installed_draws_with_every_family() -> None:
    """Whatever model HWAGA_MODEL names."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for family, packages in {name: named.packages for name, named in FAMILIES.items() if named.packages}.items():
        assert set(packages) <= {re.split(r"[^a-z0-9-]", each)[0] for each in extras[family]}
        assert f"'.[server,{family}]'" in of("RUN")[-1]


def test_the_unit() -> None:
    found = unit()
    variables = dict(pair.split("=", 1) for line in found["Environment"] for pair in shlex.split(line))
    assert_known(variables)
    assert_it_starts(shlex.split(found["ExecStart"][0]))
    state = f"/var/lib/{found['StateDirectory'][0]}"
    assert variables["HWAGA_DATA_DIR"] == variables["HOME"] == state, "all else is read-only"
    assert found["User"] == ["hwaga"]
    # Its steps on top make what it names: the user, the folders, the program.
    told = UNIT.read_text().partition("[Unit]")[0]
    assert "useradd --system hwaga\n" in told
    assert f"install -d -o hwaga -m 700 {state} " in told
    assert f"{Path(found['ExecStart'][0].split()[0]).parent}/pip install -c constraints.txt '.[server,sdxl]'" in told
    assert f"HWAGA_DATA_DIR={state} {found['ExecStart'][0].split()[0]} keys add" in told
    # The parent is told alone, and has the time that it takes.
    assert found["KillMode"] == ["mixed"]
    assert int(found["TimeoutStopSec"][0]) > DRAIN + HANG_UP
    assert {"NoNewPrivileges", "ProtectSystem", "ProtectHome", "PrivateTmp"} <= found.keys()
    assert "AF_UNIX" in found["RestrictAddressFamilies"][0], "the server and its workers speak over sockets"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("ExecStart=/opt/hwaga/bin/hwaga", f"ExecStart={shutil.which('true')}"))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, timeout=60)
    if "Failed to initialize manager" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert (done.returncode, UNIT.name in done.stderr) == (0, False), done.stderr


def test_the_dockerfile() -> None:
    kinds = [kind for kind, _ in dockerfile()]
    assert_it_starts(json.loads(of("ENTRYPOINT")[0]) + json.loads(of("CMD")[0]))
    copied = [source for rest in of("COPY") for source in shlex.split(rest)[:-1]]
    assert all((ROOT / source).exists() for source in copied)
    assert {"pyproject.toml", "hatch_build.py", "src"} <= set(copied), "what builds the package"
    (compiler, run), (user,) = of("RUN"), of("USER")
    assert " gcc " in compiler, "Triton asks for one when it first runs"
    assert f"useradd --system --create-home --uid 10001 {user}" in run
    assert "-c constraints.txt '.[server,sdxl]'" in run
    assert kinds.index("USER") > kinds.index("RUN"), "what is installed belongs to root"
    variables = dict(pair.split("=", 1) for pair in of("ENV"))
    assert_known(variables)
    assert [variables["HWAGA_DATA_DIR"]] == of("VOLUME")
    assert f"install -d -o {user} {variables['HWAGA_DATA_DIR']}" in run
    assert of("EXPOSE") == [str(inspect.signature(serve_command).parameters["port"].default)]
    python = re.fullmatch(r"python:([0-9.]+)-slim", of("FROM")[0])
    assert python is not None
    assert f"Programming Language :: Python :: {python[1]}" in (ROOT / "pyproject.toml").read_text()


def test_the_health_check_tells_a_server_that_draws_from_one_that_does_not(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    (line,) = of("HEALTHCHECK")
    command = json.loads(line[line.index("[") :])
    assert command[0] == "python"

    def healthy(url: str) -> bool:
        here = [part.replace(f"http://127.0.0.1:{of('EXPOSE')[0]}", url) for part in command[1:]]
        assert here != command[1:]
        return subprocess.run([sys.executable, *here], capture_output=True, timeout=60).returncode == 0

    with serve() as running:
        running.store.keys.add("a shop")  # it has no key
        running.until(lambda: healthy(running.url))
        running.drain(until=tmp_path / "go")
        assert not healthy(running.url)
    assert not healthy(running.url)
