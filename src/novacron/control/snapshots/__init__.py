"""Snapshots: routes ask, the service checks and records, the worker has it done; the keeper works off schedules."""
