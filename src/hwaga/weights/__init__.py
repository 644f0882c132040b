"""Checkpoints on disk and how they become networks."""
