"""Real storage servers for tests: started on loopback or a unix socket, ended whatever happens."""
