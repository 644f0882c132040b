from __future__ import annotations

import json

import torch
from command import Command

from hwaga.version import __version__


def test_findings_cover_the_machine(hwaga: Command) -> None:
    findings = {finding["subject"]: finding for finding in json.loads(hwaga("doctor", "--json").out)}
    assert findings["hwaga"]["text"] == __version__
    assert torch.__version__ in findings["torch"]["text"]
    assert {"Python", "RAM", "Swap", "Disk"} <= set(findings)
    assert findings["mini"]["good"] is True
    assert "not on this machine" in findings["z-image-turbo"]["text"]
    assert "mini" in hwaga("doctor").out
