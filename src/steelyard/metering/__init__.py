"""HOW MUCH was used: meters, usage, bounds and the usage event. Pure: no input or output."""
