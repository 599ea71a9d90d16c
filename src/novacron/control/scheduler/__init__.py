"""Where a machine should go: a pure function of a snapshot; answers carry reasons."""
