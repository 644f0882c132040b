"""Imports point one way, and nothing heavy happens before it is needed.

    ui (over HTTP) → server, cli → engines → engine → forecast → placement, resolve → room → prompt, families → memory.demand,
    weights, sampling, kernels → the foundation

Families say what they ask of memory in the types of memory.demand, which are pure data; where weights lie is not
theirs to see, so that of memory they may import nothing else.

The first part reads every import under src/hwaga, also those inside functions; imports under TYPE_CHECKING are free. The
second part starts Python and looks at what was loaded.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "hwaga"

FOUNDATION = frozenset(
    {
        "card_styles",
        "card_toml",
        "cards",
        "errors",
        "hub_sources",
        "image_file",
        "loras",
        "model_lookup",
        "prompt_form",
        "request",
        "result",
        "settings",
        "source_image",
        "toml_table",
        "version",
    }
)

# What each part of the package (a module or folder directly under hwaga) may import from the others.
MAY_IMPORT: dict[str, frozenset[str]] = {
    **dict.fromkeys(FOUNDATION, FOUNDATION),  # among themselves without a cycle, which is checked too
    "errors": frozenset(),
    "version": frozenset(),
    "kernels": FOUNDATION,
    "sampling": FOUNDATION,
    "weights": FOUNDATION | {"kernels"},
    "families": FOUNDATION | {"weights", "sampling", "kernels", "memory"},  # of memory, the types of its demands alone
    "tokens": FOUNDATION | {"families"},  # the families' tokenizers for those that run without torch
    "memory": FOUNDATION | {"kernels"},
    "prompt": FOUNDATION,
    "resolve": FOUNDATION | {"prompt", "families", "weights"},
    "room": FOUNDATION | {"families", "memory"},
    "placement": FOUNDATION | {"families", "memory", "room"},
    "forecast": FOUNDATION | {"families", "memory", "weights", "kernels", "room", "resolve"},
    "forecasts": FOUNDATION | {"memory", "forecast"},
    "engine": FOUNDATION
    | {"prompt", "families", "memory", "weights", "sampling", "kernels", "room", "placement", "resolve", "forecast"},
    "engines": FOUNDATION | {"families", "memory", "room", "engine"},
    "__init__": FOUNDATION | {"prompt", "engine", "engines"},  # the public names
    "convert": FOUNDATION | {"families", "weights"},
    "server": FOUNDATION | {"__init__", "prompt", "tokens", "memory", "engine", "engines"},
    "cli": FOUNDATION
    # `hwaga serve` starts the server; `hwaga download` fetches weights and reads none of them.
    | {"__init__", "prompt", "tokens", "memory", "weights", "forecast", "forecasts", "engine", "convert", "server"},
    "__main__": frozenset({"cli"}),
    "ui": frozenset(),  # speaks HTTP
}

# Words, requests, cards and picture files are for the server's front and for --help, which run without torch.
WITHOUT_TORCH = FOUNDATION | {"prompt", "tokens"}
# The server's front stays small and alive whatever the engine does: that runs in the worker's process, and there alone.
ENGINE_OF_THE_SERVER = "server/worker.py"
NOT_THE_FRONTS = frozenset({"engine", "engines", "memory"})
# What a family may know of memory: how to say what it asks for.
DEMANDS = "hwaga.memory.demand"
# The reference that Z-Image is held against is no part of Z-Image; SDXL's networks are borrowed from it.
REFERENCE = frozenset({"diffusers", "transformers", "peft", "accelerate"})
BORROWS_NETWORKS = "families/sdxl/"


class Import(NamedTuple):
    target: str
    """Dotted name: of the module, followed by the name taken from it, if any."""
    line: int


def imports_of(source: str, module: str, *, is_package: bool) -> list[Import]:
    """Every import in a module's source: at the top, inside functions, relative, and by ``import_module("name")``."""
    tree = ast.parse(source)
    package = module if is_package else module.rpartition(".")[0]
    found = []
    for node in _running_code(tree):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            found += [Import(f"{base}.{alias.name}", node.lineno) for alias in node.names]
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            name = node.args[0]
            by_name = called in ("import_module", "__import__")
            if by_name and isinstance(name, ast.Constant) and isinstance(name.value, str):
                found.append(Import(name.value, node.lineno))
    return found


def _running_code(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker sees."""
    yield node
    hidden: list[ast.stmt] = []
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        hidden = node.body
    for child in ast.iter_child_nodes(node):
        if child not in hidden:
            yield from _running_code(child)


def violations(files: Mapping[str, str]) -> list[str]:
    """What is wrong with the imports of a package, given as paths below hwaga and their sources."""
    parts = {path: path.split("/")[0].removesuffix(".py") for path in files}
    families = {path.split("/")[1] for path in files if path.startswith("families/") and path.count("/") > 1}
    edges: dict[str, set[str]] = {part: set() for part in parts.values()}
    wrong = [
        f"{part} is new: decide where it belongs and add it to the layers (MAY_IMPORT in this test)"
        for part in sorted(set(parts.values()) - set(MAY_IMPORT))
    ]
    for path, source in sorted(files.items()):
        part, own_family = parts[path], path.split("/")[1] if path.startswith("families/") else ""
        dotted = "hwaga." + path.removesuffix(".py").replace("/", ".")
        module = dotted.removesuffix(".__init__")
        for target, line in imports_of(source, module, is_package=path.endswith("__init__.py")):
            where = f"{path}:{line}"
            top, *names = target.split(".")
            if top != "hwaga":
                if top == "torch" and part in WITHOUT_TORCH:
                    wrong.append(f"{where}: {part} must not import torch")
                if top == "torch" and part == "server" and path != ENGINE_OF_THE_SERVER:
                    wrong.append(f"{where}: of server, only {ENGINE_OF_THE_SERVER} may import torch")
                if top in REFERENCE and not path.startswith(BORROWS_NETWORKS):
                    wrong.append(f"{where}: only {BORROWS_NETWORKS} may import {top}")
                continue
            imported = names[0] if names and (names[0] in edges or names[0] in MAY_IMPORT) else "__init__"
            if imported == part:
                family = names[1] if part == "families" and len(names) > 1 else ""
                if own_family in families and family in families and family != own_family:
                    wrong.append(f"{where}: family {own_family} must not import family {family}")
                continue
            edges[part].add(imported)
            if part == "server" and imported in NOT_THE_FRONTS and path != ENGINE_OF_THE_SERVER:
                wrong.append(f"{where}: of server, only {ENGINE_OF_THE_SERVER} may import {imported}")
            if part == "families" and imported == "memory" and not f"{target}.".startswith(f"{DEMANDS}."):
                wrong.append(f"{where}: of memory, families may import {DEMANDS} only")
            if part in MAY_IMPORT and imported not in MAY_IMPORT[part]:
                wrong.append(f"{where}: {part} must not import {imported}")
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        wrong.append(f"cycle: {' → '.join(reversed(error.args[1]))}")
    return wrong


def test_imports_point_one_way() -> None:
    files = {path.relative_to(PACKAGE).as_posix(): path.read_text("utf-8") for path in PACKAGE.rglob("*.py")}
    assert "__init__.py" in files
    assert violations(files) == []


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("weights/lora.py", "from hwaga.engine import Engine", "weights must not import engine"),
        ("sampling/euler.py", "import hwaga.weights.lora as lora", "sampling must not import weights"),
        ("memory/plan.py", "from hwaga import weights", "memory must not import weights"),
        ("memory/plan.py", "from hwaga.prompt.compose import compose", "memory must not import prompt"),
        ("prompt/compose.py", "def f():\n    from hwaga.families import z_image", "prompt must not import families"),
        (
            "prompt/compose.py",
            "class A:\n    def f(self):\n        import torch.nn as nn",
            "prompt must not import torch",
        ),
        ("prompt/__init__.py", "from ..memory import budget", "prompt must not import memory"),
        ("prompt/library.py", "from ..engine import Engine", "prompt must not import engine"),
        ("prompt/library.py", "from .. import engine", "prompt must not import engine"),
        ("cli/text.py", "def run():\n    from hwaga.families.z_image import family", "cli must not import families"),
        ("cli/text.py", "import importlib\nimportlib.import_module('hwaga.kernels')", "cli must not import kernels"),
        ("server/api.py", "from hwaga.sampling.euler import euler", "server must not import sampling"),
        ("server/api.py", "import hwaga.weights", "server must not import weights"),
        ("server/api.py", "from hwaga.cli import app", "server must not import cli"),
        ("server/api.py", "def f():\n    import torch", "of server, only server/worker.py may import torch"),
        ("server/api.py", "from hwaga.engine import Engine", "of server, only server/worker.py may import engine"),
        ("server/api.py", "from hwaga.memory import budget", "of server, only server/worker.py may import memory"),
        ("engine.py", "from hwaga.server import api", "engine must not import server"),
        ("engine.py", "from hwaga import Engine", "engine must not import __init__"),
        ("image_file.py", "from hwaga import __version__", "image_file must not import __init__"),
        ("source_image.py", "def f():\n    import torch", "source_image must not import torch"),
        ("errors.py", "from hwaga.settings import Settings", "errors must not import settings"),
        ("request.py", "if x:\n    from hwaga.engine import Engine", "request must not import engine"),
        ("request.py", "if not TYPE_CHECKING:\n    import hwaga.engine", "request must not import engine"),
        (
            "request.py",
            "if TYPE_CHECKING:\n    pass\nelse:\n    import hwaga.engine",
            "request must not import engine",
        ),
        ("families/sdxl/family.py", "from hwaga.families.z_image import family", "sdxl must not import family z_image"),
        ("families/sdxl/family.py", "from ..z_image.family import A", "sdxl must not import family z_image"),
        (
            "families/sdxl/family.py",
            "from hwaga.memory.residency import Residency",
            "of memory, families may import hwaga.memory.demand only",
        ),
        ("families/sdxl/family.py", "import hwaga.memory", "of memory, families may import hwaga.memory.demand only"),
        ("families/sdxl/family.py", "from hwaga.placement import Caps", "families must not import placement"),
        ("memory/budget.py", "from hwaga.forecast import forecast", "memory must not import forecast"),
        ("families/z_image/family.py", "import diffusers", "only families/sdxl/ may import diffusers"),
        ("engine.py", "from transformers import AutoTokenizer", "only families/sdxl/ may import transformers"),
        ("utils.py", "", "utils is new: decide where it belongs and add it to the layers"),
        ("utils/__init__.py", "", "utils is new: decide where it belongs and add it to the layers"),
        ("prompt/compose.py", "import hwaga.utils", "prompt must not import __init__"),
    ],
)
def test_the_check_can_fail(path: str, source: str, complaint: str) -> None:
    found = violations({"families/z_image/family.py": "", "families/sdxl/family.py": "", path: source})
    assert len(found) == 1
    assert complaint in found[0]


def test_a_cycle_in_the_foundation_is_found() -> None:
    found = violations({"cards.py": "import hwaga.request", "request.py": "def f():\n    from hwaga import cards"})
    assert len(found) == 1
    assert found[0].startswith("cycle: ")


def test_what_is_allowed_passes() -> None:
    files = {
        "__init__.py": "from hwaga.engine import Engine\nfrom hwaga.version import __version__",
        "__main__.py": "from hwaga.cli import main",
        "errors.py": "",
        "version.py": "",
        "cards.py": "from hwaga.errors import CardError",
        "request.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from hwaga.engine import Engine",
        "image_file.py": "from hwaga.version import __version__",
        "prompt/__init__.py": "from hwaga.prompt import compose\nfrom . import template",
        "prompt/compose.py": "import tomllib\nfrom .template import fill\nfrom ..errors import PromptError",
        "prompt/template.py": "",
        "weights/checkpoint.py": "import torch\nfrom hwaga.errors import CheckpointError",
        "families/__init__.py": "def open(name):\n    from hwaga.families.z_image import family",
        "families/family.py": "",
        "families/z_image/family.py": "from hwaga.families.family import Family\nfrom hwaga.memory.demand import Demand",
        "placement.py": "from hwaga.families.family import Model\nfrom hwaga.memory.residency import Residency",
        "forecast.py": "from hwaga.room import Caps",
        "families/sdxl/family.py": "import diffusers\nimport torch",
        "engine.py": "from hwaga import families, prompt\nfrom hwaga.weights import lora\nimport hwaga.memory.plan",
        "cli/__init__.py": "def main():\n    from hwaga.engine import Engine\n    from hwaga.server import api",
        "server/api.py": "from hwaga import ImageRequest\nfrom hwaga.result import Step",
        "server/worker.py": "def run():\n    from hwaga.engine import Engine\n    import torch",
    }
    assert violations(files) == []


HEAVY = ("torch", "transformers", "diffusers")


def run_fresh(action: str) -> subprocess.CompletedProcess[str]:
    """Do ``action`` in a new Python that ends with an error when anything heavy was loaded by it."""
    program = f"""
import sys

def hwaga(*arguments):
    from hwaga.cli import main
    sys.argv = ["hwaga", *arguments]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code

{action}
loaded = [name for name in {HEAVY!r} if name in sys.modules]
sys.exit(f"loaded: {{', '.join(loaded)}}" if loaded else 0)
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "action",
    [
        "import hwaga",
        "import hwaga.cli",
        "import hwaga.weights.download",
        "import hwaga.server.dispatcher, hwaga.server.store",
        "import hwaga.server.api, hwaga.server.listener",
    ],
)
def test_importing_loads_nothing_heavy(action: str) -> None:
    done = run_fresh(action)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["text2image", "--help"], ["download", "--help"], ["models", "--help"], ["serve", "--help"]],
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    done = run_fresh(f"hwaga(*{arguments!r})")
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_composing_and_counting_loads_nothing_heavy() -> None:
    done = run_fresh(
        "hwaga('prompt', 'a cake', '--style', 'watercolor', '--industry', 'auto', '--model', 'z-image-turbo')"
    )
    assert done.returncode == 0, done.stderr
    assert "watercolour" in done.stdout


def test_the_look_for_heavy_modules_can_fail() -> None:
    done = run_fresh("sys.modules['diffusers'] = sys")
    assert done.returncode == 1
    assert done.stderr.strip() == "loaded: diffusers"
