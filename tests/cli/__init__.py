"""Tests: see the files beside this one."""
