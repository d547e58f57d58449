"""Where a request goes: models, their deployments on upstreams, and what happens when one fails."""
