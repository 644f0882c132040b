"""The version, in one place: packaging and picture metadata both read it here."""

__version__ = "0.1.0"
