"""Pipelines against running processes: what they answer, cost, survive and refuse."""

import json
import signal
import subprocess
import time
from collections.abc import Generator
from decimal import Decimal
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from tests.e2e.product import wait_until
from tests.e2e.scripted_product import ScriptedProduct, running_scripted_product

pytestmark = pytest.mark.slow
SCRIPT = """
models: [ticket-classifier, smollm2-135m-instruct]
answers:
  - when: {contains: breaks}
    times: 1
    status: 400
  - when: {contains: lingers}
    times: 1
    delay_s: 8
  - words: [We, ' refund', ' you']
"""
# Seven tokens of prompt for a label, and three more words for an answer.
LABEL, ANSWER = 7 * Decimal(2) / 10**6, (7 * Decimal(2) + 3 * 10) / 10**6
SPLIT = """
schema: steelyard.pipeline/v1
name: split
input: [texts]
stages:
  first:
    endpoint: /v1/classifications
    for_each: "${input.texts}"
    body: { model: ticket-classifier, input: "${item}" }
    payer: sales
  second:
    endpoint: /v1/chat/completions
    after: [first]
    body:
      model: smollm2-135m-instruct
      max_tokens: 9
      messages: [{ role: user, content: "${input.texts.1} ${first.0.data.0.label}" }]
    split: { it: 1, sales: 2 }
output: "${first.1.data.0.label}: ${second.choices.0.message.content}"
"""
CYCLE = SPLIT.replace("name: split", "name: cycle").replace("payer: sales", "after: [second]")


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Generator[ScriptedProduct]:
    folder: Path = tmp_path_factory.mktemp("pipelines")
    pipelines = folder / "pipelines"
    pipelines.mkdir()
    (pipelines / "split.yaml").write_text(SPLIT)
    (pipelines / "cycle.yaml").write_text(CYCLE)
    with running_scripted_product(
        folder,
        SCRIPT,
        STEELYARD_PIPELINES_DIR=str(pipelines),
        # This upstream keeps no log to ask.
        STEELYARD_RECOVERY_PATIENCE_S="1",
    ) as running:
        yield running


@pytest.fixture(scope="module")
def secret(product: ScriptedProduct) -> str:
    secret = product.tenant("acme", dollars="1")
    product.command("department", "create", "acme/sales")
    return secret


def _run(product: ScriptedProduct, secret: str, name: str, **given: Any) -> dict[str, Any]:
    answer = product.post(f"/v1/pipelines/{name}/runs", secret, {"input": given})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_ticket_is_labelled_and_answered_for_the_sum_of_its_stages(
    product: ScriptedProduct, secret: str
) -> None:
    run = _run(product, secret, "ticket", ticket="billing: charged twice")

    assert run["status"] == "completed"
    assert run["output"] == {"label": "billing", "answer": "We refund you"}
    assert [Decimal(stage["cost"]) for stage in run["stages"]] == [LABEL, ANSWER]
    assert Decimal(run["usage"]["cost"]) == LABEL + ANSWER
    for stage in run["stages"]:
        [call] = stage["calls"]
        settled = product.settled(call["event_id"], secret)
        assert settled["cost"] == call["cost"]
        assert settled["request_id"] == run["id"]


def test_a_stage_whose_condition_fails_is_left_out(product: ScriptedProduct, secret: str) -> None:
    run = _run(product, secret, "ticket", ticket="hello there")

    assert [stage["status"] for stage in run["stages"]] == ["completed", "skipped"]
    assert run["output"] == {"label": "hello", "answer": None}
    assert Decimal(run["usage"]["cost"]) == LABEL


def test_each_stage_is_paid_by_its_payer_and_shares_add_up(
    product: ScriptedProduct, secret: str
) -> None:
    run = _run(product, secret, "split", texts=["number one", "number two", "number three"])

    assert run["output"] == "number: We refund you"
    departments = [call["department"] for stage in run["stages"] for call in stage["calls"]]
    assert departments == ["sales", "sales", "sales", "it"]
    assert sum(map(Decimal, run["shares"].values())) == Decimal(run["usage"]["cost"])
    assert Decimal(run["shares"]["it"]) == round(ANSWER / 3, 12)
    event_id = run["stages"][0]["calls"][0]["event_id"]
    product.settled(event_id, secret)
    lines = product.command("statement", "acme/sales", "--json")["lines"]
    assert {line["model"] for line in lines} == {"ticket-classifier"}


def test_progress_is_told_stage_by_stage(product: ScriptedProduct, secret: str) -> None:
    body = {"input": {"ticket": "billing please"}, "stream": True}

    events = product.post("/v1/pipelines/ticket/runs", secret, body).text

    told = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: ")]
    kinds = [event["type"] for event in told]
    assert kinds == ["stage.started", "stage.ended", "stage.started", "stage.ended", "run.ended"]
    assert told[-1]["status"] == "completed"


def test_a_failed_run_charges_what_ended_and_goes_on_behind_it(
    product: ScriptedProduct, secret: str
) -> None:
    failed = _run(product, secret, "split", texts=["number one", "it breaks"])
    again = product.post(f"/v1/pipelines/split/runs/{failed['id']}/retry", secret, {}).json()
    once_more = product.post(f"/v1/pipelines/split/runs/{failed['id']}/retry", secret, {})

    assert failed["status"] == "failed"
    assert failed["error"]["code"] == "stage_failed"
    assert again["status"] == "completed"
    kept = [call for call in failed["stages"][0]["calls"] if Decimal(call["cost"])]
    assert len(kept) == 1
    assert kept[0] in again["stages"][0]["calls"]
    assert Decimal(again["usage"]["cost"]) == 2 * LABEL + ANSWER
    assert once_more.status_code == 409


def test_a_run_whose_gateway_is_killed_goes_on_and_pays_no_stage_twice(
    product: ScriptedProduct,
) -> None:
    secret = product.tenant("killed", dollars="1")
    product.command("department", "create", "killed/sales")
    ids: list[str] = []

    def listen() -> None:
        body = {"input": {"texts": ["this is fine", "this lingers"]}, "stream": True}
        headers = {"Authorization": f"Bearer {secret}"}
        url = f"{product.url}/v1/pipelines/split/runs"
        try:
            with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as answer:
                for line in answer.iter_lines():
                    if line.startswith("data: "):
                        ids.append(json.loads(line[6:])["run"])
        except httpx.HTTPError:
            pass

    listener = Thread(target=listen)
    listener.start()
    wait_until(lambda: bool(ids))
    run = f"/v1/pipelines/split/runs/{ids[0]}"
    wait_until(lambda: any(s["calls"] for s in product.get(run, secret).json()["stages"]))
    time.sleep(0.5)
    gateway = product.processes["gateway"]
    gateway.send_signal(signal.SIGKILL)
    gateway.wait()
    listener.join(timeout=30)
    product.closing.callback(_stop, product.start("gateway", "gateway"))
    wait_until(lambda: product.is_ready(f"{product.url}/health"))
    kept = product.get(run, secret).json()["stages"][0]["calls"]

    again = product.post(f"{run}/retry", secret, {}).json()

    assert again["status"] == "completed"
    assert kept[0] in again["stages"][0]["calls"]
    cost = Decimal(again["usage"]["cost"])
    assert cost == 2 * LABEL + ANSWER

    def spent() -> Decimal:
        balance = product.get("/v1/balance", secret).json()
        return 1 - Decimal(balance["available"]) - Decimal(balance["held"])

    wait_until(lambda: spent() == cost)
    product.command("verify", "--json")


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("cycle/runs", {"input": {"texts": []}}, (400, "pipeline_cyclic")),
        ("nobody/runs", {"input": {}}, (404, "pipeline_not_found")),
        ("ticket/runs", {"input": {}}, (400, "invalid_request")),
        ("ticket/runs", {"input": {"ticket": "a", "more": 1}}, (400, "invalid_request")),
        ("ticket/runs/run_x/retry", {}, (404, "run_not_found")),
    ],
)
def test_bad_input_is_refused_before_anything_is_held(
    path: str, body: dict[str, Any], told: tuple[int, str], product: ScriptedProduct, secret: str
) -> None:
    answer = product.post(f"/v1/pipelines/{path}", secret, body)

    assert (answer.status_code, answer.json()["error"]["code"]) == told


def _stop(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    process.wait(timeout=60)
