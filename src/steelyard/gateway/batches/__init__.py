"""Batches: many requests out of one file, answered in the background, each charged once."""
