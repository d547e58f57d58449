"""A server that plays a script instead of a model: `steelyard scripted-upstream`."""
