"""Bulk migrations and drains: routes ask, the service plans and records, the worker has moves begun within limits."""
