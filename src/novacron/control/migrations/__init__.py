"""Migrations: routes ask, the service checks and records, the conductor has it done step by step."""
