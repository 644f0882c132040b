"""Words only: templates, packs of styles and industries, and the composer. It imports no torch."""

from __future__ import annotations

from hwaga.prompt.compose import Composition, compose
from hwaga.prompt.library import Library
from hwaga.prompt.template import Slots

__all__ = ["Composition", "Library", "Slots", "compose"]
