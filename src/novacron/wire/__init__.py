"""Words: what travels between people, servers and agents. Pydantic lives only in wire.rest."""
