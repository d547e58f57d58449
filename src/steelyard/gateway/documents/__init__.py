"""Documents longer than a model's context: read, cut into parts, answered part by part, put together."""
