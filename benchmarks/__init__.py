"""Benchmarks: each is a make target, shows its progress, and ends with one line of JSON."""
