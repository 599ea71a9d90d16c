"""The public REST words, one file a noun: what OpenAPI shows and what clients send and get."""
