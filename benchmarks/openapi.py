"""Made-up requests, good and bad, to every operation of the OpenAPI document: more of them than the tests send.

    python benchmarks/openapi.py [--examples 1000] [--limit-seconds 1500] [--operations "GET /v1/jobs" …]

Runs the tests of the document, one operation after the other, each in a process and with a server of its own. What came of
each, with how many answers of which status, goes to ``results/openapi.json``, unless it was of some operations alone; the exit
code is 1 if one failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from report import write_report

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from openapi_examples import OPERATIONS

ROOT = Path(__file__).parent.parent
FILES = {"jobs": "test_openapi.py", "images": "test_openapi_images.py"}


def check(file: str, operation: str, examples: int, limit: float) -> dict[str, Any]:
    """What came of an operation's test: whether it passed, how long it took, and answers by status."""
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary) / "report.xml"
        begin = time.monotonic()
        test = f"tests/server/{file}::test_nothing_breaks_it[{operation}]"
        options = ["-q", "--examples", str(examples), "--junitxml", str(report), "-o", "junit_family=xunit1"]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", test, *options], cwd=ROOT, timeout=limit, check=False
            )
        except subprocess.TimeoutExpired:
            return {"passed": False, "seconds": limit, "answers": None}
        found = ElementTree.parse(report).find(".//property[@name='answers']") if report.exists() else None
        return {
            "passed": done.returncode == 0,
            "seconds": round(time.monotonic() - begin, 1),
            "answers": None if found is None else dict(sorted(json.loads(found.attrib["value"]).items())),
        }


def main() -> None:
    names = [(FILES[group], name) for group, all_of_it in OPERATIONS.items() for name in all_of_it]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--examples", type=int, default=1000, help="of each operation, or all there are if it takes nothing"
    )
    parser.add_argument("--limit-seconds", type=float, default=1500, help="for each operation")
    parser.add_argument("--operations", nargs="+", choices=[name for _, name in names], help="all of them unless named")
    arguments = parser.parse_args()
    chosen = [(file, name) for file, name in names if name in (arguments.operations or [name])]
    results = {name: check(file, name, arguments.examples, arguments.limit_seconds) for file, name in chosen}
    figures = {"examples": arguments.examples, "operations": results}
    print(json.dumps(figures, indent=2))
    if chosen == names:
        print(write_report("openapi", figures))
    failed = [name for name, result in results.items() if not result["passed"]]
    if failed:
        sys.exit(f"{len(failed)} failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
