"""Compiles ``avx512.c`` while the package is built, where there is a C compiler for it; Hwaga runs without it, more slowly.

Compiling and linking are two commands, since one would link OpenMP's runtime: the module uses the one that torch loads.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("src/hwaga/kernels/avx512.c")
MODULE = Path("src/hwaga/kernels/_avx512.abi3.so")


class Compile(BuildHookInterface[Any]):
    """Adds the module to a wheel, or to the folder of an editable installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 (hatchling gives it by name)
        if sys.platform != "linux" or platform.machine() != "x86_64":
            return
        root = Path(self.root)
        source, module = root / SOURCE, root / MODULE
        with tempfile.TemporaryDirectory(prefix="hwaga-") as folder:
            compiled, linked = Path(folder, "avx512.o"), Path(folder, module.name)
            facts = (f"-I{sysconfig.get_path('include')}", f'-DSOURCE="{sha256(source.read_bytes()).hexdigest()}"')
            warnings = ("-Wall", "-Wextra", "-Werror=implicit-function-declaration")
            try:
                compiler = shlex.split(os.environ.get("CC") or "cc")
                for command in (
                    [*compiler, "-O3", "-fPIC", "-fopenmp", *warnings, *facts, "-c", str(source), "-o", str(compiled)],
                    [*compiler, "-shared", str(compiled), "-lm", "-o", str(linked)],
                ):
                    subprocess.run(command, check=True, capture_output=True, text=True)
                if b"__kmpc_" in linked.read_bytes():
                    raise ValueError("it calls LLVM's OpenMP, and torch brings GCC's: set CC to a GCC")
            except (OSError, ValueError, subprocess.CalledProcessError) as error:
                why = getattr(error, "stderr", None) or error
                self.app.display_warning(f"{SOURCE} was not compiled, so that pictures on a CPU take longer: {why}")
                return
            shutil.copy(linked, module.with_suffix(".new"))
            module.with_suffix(".new").replace(module)  # at once: a process may have the old one open
        build_data["pure_python"] = False
        build_data["tag"] = f"cp311-abi3-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        build_data["artifacts"].append(f"/{MODULE}")
