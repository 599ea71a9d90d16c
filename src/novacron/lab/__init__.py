"""Several nodes on one machine: for the demo, for system tests and for trying things out."""
