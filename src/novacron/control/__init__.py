"""The process that decides: it records what is wanted and has agents do it."""
