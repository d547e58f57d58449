"""Metrics of real processes, over HTTP."""

from pathlib import Path

import httpx
import pytest

from tests.e2e.product import wait_until
from tests.e2e.scripted_product import running_scripted_product
from tests.postgres_server import free_port

pytestmark = pytest.mark.slow
SCRIPT = """
models: [scripted]
answers:
  - words: [Paris, ' it is']
"""


def test_gateway_and_worker_tell_their_metrics_on_ports_of_their_own(tmp_path: Path) -> None:
    gateway, worker = free_port(), free_port()
    settings = {
        "STEELYARD_GATEWAY_METRICS_PORT": str(gateway),
        "STEELYARD_WORKER_METRICS_PORT": str(worker),
        "STEELYARD_RECONCILE_S": "0.2",
    }
    with running_scripted_product(tmp_path, SCRIPT, **settings) as product:
        secret = product.tenant("acme")
        body = {"model": "scripted", "messages": [{"role": "user", "content": "?"}]}
        answer = product.post("/v1/chat/completions", secret, body).json()
        product.settled(answer["usage"]["event_id"], secret)

        told = _metrics(gateway)
        wait_until(lambda: 'outcome="settled"} 1.0' in _metrics(worker))
        reconciled = _metrics(worker)

        assert 'steelyard_requests_total{outcome="completed"} 1.0' in told
        assert "steelyard_unexplained_holds 0.0" in told
        unexplained = [
            line for line in reconciled.splitlines() if line.startswith("steelyard_unexplained")
        ]
        assert unexplained
        assert all(line.endswith(" 0.0") for line in unexplained)
        assert httpx.get(f"{product.url}/metrics").status_code == 404


def _metrics(port: int) -> str:
    response = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10)
    assert response.status_code == 200
    return response.text
