"""Migration rehearsals: routes ask, the service makes the copy's records, the worker has it copied, booted, deleted."""
