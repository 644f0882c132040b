"""Serving: jobs that survive a crash, a worker process for each device, and what connects the two."""
