"""Compiles ``avx512.c`` while the package is built, where there is a C compiler for it; Hwaga runs without it, more slowly.

Compiling and linking are two commands, since one would link OpenMP's runtime: the module uses the one that torch loads.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("src/hwaga/kernels/avx512.c")
MODULE = Path("src/hwaga/kernels/_avx512.abi3.so")


class Compile(BuildHookInterface[Any]):
    """Adds the module to a wheel, or to the folder of an editable installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 (hatchling gives it by name)
        root = Path(self.root)
        (root / MODULE).unlink(missing_ok=True)  # which may be another machine's, or of another source
        if sys.platform != "linux" or platform.machine() != "x86_64":
            return
        compiler = shlex.split(os.environ.get("CC", "cc"))
        compiled = (root / MODULE).with_suffix(".o")
        headers = f"-I{sysconfig.get_path('include')}"
        warnings = ("-Wall", "-Wextra", "-Werror=implicit-function-declaration")
        commands = (
            [*compiler, "-O3", "-fPIC", "-fopenmp", *warnings, headers, "-c", str(root / SOURCE), "-o", str(compiled)],
            [*compiler, "-shared", str(compiled), "-lm", "-o", str(root / MODULE)],
        )
        try:
            for command in commands:
                subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            why = getattr(error, "stderr", None) or error
            self.app.display_warning(f"{SOURCE} was not compiled, so that pictures on a CPU take longer: {why}")
            return
        finally:
            compiled.unlink(missing_ok=True)
        build_data["pure_python"] = False
        build_data["tag"] = f"cp311-abi3-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        build_data["artifacts"].append(f"/{MODULE}")
