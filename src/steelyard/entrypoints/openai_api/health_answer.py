"""What the gateway says of its health. Anybody may ask, so there are no addresses and no reasons."""

from typing import Any

from steelyard.app.gateway import GatewayParts


def health_document(parts: GatewayParts, *, is_draining: bool) -> dict[str, Any]:
    """Whether requests should come here, and how upstreams and deployments are doing."""
    catalog = parts.catalog
    status = "ready" if catalog.is_ready else "waiting for a model"
    down = catalog.down()
    models: dict[str, list[dict[str, Any]]] = {}
    for state in catalog.states():
        deployment = {
            "upstream": state.upstream,
            "breaker": state.breaker,
            "open_requests": state.open_count,
        }
        models.setdefault(state.model, []).append(deployment)
    return {
        "status": "draining" if is_draining else status,
        "configuration": "current" if parts.routing.is_current else "refused",
        "upstreams": {
            upstream.name: "down" if upstream.name in down else "up"
            for upstream in catalog.routes.upstreams
        },
        "models": models,
    }
