"""The `steelyard` command: one file for each noun."""
