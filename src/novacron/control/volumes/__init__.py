"""Volumes: routes ask, the service decides and records, the worker has nodes do it."""
