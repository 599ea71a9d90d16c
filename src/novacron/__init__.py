"""NovaCron: a distributed virtual-machine manager whose core strength is moving machines."""

__version__ = "0.1.0"
