"""Hypervisors: each driver runs machines of one kind behind the contract in base."""
