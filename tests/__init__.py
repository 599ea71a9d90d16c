"""Tests mirror the tree; see CONTRIBUTING.md."""
