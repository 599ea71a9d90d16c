"""The command line: noun-verb commands over the client library."""
