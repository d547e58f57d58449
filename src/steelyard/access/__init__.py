"""WHO may call, and how fast: tenants, virtual keys and limits."""
