"""Fencing by power: routes ask, the service records devices and words, the fencer has silent nodes switched off."""
