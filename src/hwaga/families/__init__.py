"""Model families. Each is a package that implements ``family.Family``; this table names them without importing any."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from hwaga.errors import CardError
from hwaga.families.family import Family

FAMILIES = {"z_image": "hwaga.families.z_image.family:ZImage"}
"""Family by name: module and class. A family is imported when a model of it is opened."""


def find_family(name: str) -> Family:
    """The family of a model card.

    Raises:
        CardError: no family of that name.
    """
    if name not in FAMILIES:
        raise CardError(f"There is no model family {name!r}. There is {', '.join(FAMILIES)}.")
    module, _, attribute = FAMILIES[name].partition(":")
    return cast(Family, getattr(import_module(module), attribute)())
