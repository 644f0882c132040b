"""The environment that every test, and every process a test starts, runs in.

It is set here, before anything reads it, and not in the Makefile, so that pytest run by hand behaves the same.
"""

from __future__ import annotations

import gc
import os
import signal

import pytest
from hypothesis import settings

# Nothing may reach for the network: a test that needs a file makes it or ships it.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# The settings and terminal of whoever runs the tests are no part of them. HWAGA_REQUIRE_BROWSER is no setting: see tests/ui.
for name in [name for name in os.environ if name.startswith("HWAGA_") and name != "HWAGA_REQUIRE_BROWSER"]:
    del os.environ[name]
# Which number format suits a CPU is the machine's; what the tests say holds for one format on all machines.
os.environ["HWAGA_DTYPE"] = "float32"
for name in ("FORCE_COLOR", "CLICOLOR_FORCE"):
    os.environ.pop(name, None)
os.environ["NO_COLOR"] = "1"
os.environ["COLUMNS"] = "120"

# A shell that runs the tests in the background has them ignore Ctrl-C, and the processes that they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Workers share the cores: with torch's default, each would start a thread for every core and they would take turns. Nothing is
# set in the process that starts the workers, since they would inherit it.
if "PYTEST_XDIST_WORKER" in os.environ:
    _workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // _workers))

SLOW = (
    "ui/test_making.py",
    "test_placement.py",
    "server/test_openapi.py",
    "test_engine.py",
    "families/test_z_image_parity.py",
    "server/test_openapi_images.py",
    "test_convert.py",
    "weights/test_quantize.py",
    "server/test_hostile_pictures.py",
    "ui/test_access.py",
    "ui/test_gallery.py",
    "weights/test_download.py",
    "server/test_dispatcher.py",
    "server/test_page.py",
    "cli/test_serve.py",
    "test_soak.py",
)
"""Files that take longest, the longest first. One process tests a file: one that came last would have the others wait."""

# A busy machine is no failure, so no deadline; where results must repeat, so do the examples.
settings.register_profile("hwaga", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("hwaga")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the slow files; each stays in one piece, and in its order."""
    place = {f"tests/{file}": number for number, file in enumerate(SLOW)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(place)))


def pytest_collection_finish() -> None:
    """What is imported by now stays, and is most of all objects: the garbage collector, which tests about memory call all the
    time and which walks through everything, need not look at it ever again.
    """
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--examples", type=int, default=100, help="how many requests to make of each operation of the OpenAPI document"
    )


@pytest.fixture(scope="session")
def examples(request: pytest.FixtureRequest) -> int:
    found: int = request.config.getoption("--examples")
    return found
