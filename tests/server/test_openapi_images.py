"""The same as in test_openapi of the images API of OpenAI and of what there is to ask for: a second file, for a second core."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from openapi_examples import OPERATIONS, check_operation

if TYPE_CHECKING:
    from conftest import Running


@pytest.mark.parametrize("name", OPERATIONS["images"])
def test_nothing_breaks_it(
    server: Running, name: str, examples: int, record_property: Callable[[str, object], None]
) -> None:
    record_property("answers", json.dumps(check_operation(server, name, examples)))
