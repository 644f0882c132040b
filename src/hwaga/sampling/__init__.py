"""Noise schedules and the samplers that walk down them."""
