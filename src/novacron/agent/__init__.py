"""The process that does: one a node; knows its own machines and no cluster."""
