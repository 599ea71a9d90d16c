"""For tests, simulations and authors of plug-ins: a hand-wound clock, a driver in memory, a cluster in one process."""
