"""Simulation: the real control plane over simulated nodes on virtual time, by a scenario file, and what it cost."""
