"""Bad input: each a clear error with a stable code, nothing charged, nothing lost."""

import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.product import (
    MODEL,
    Product,
    product_environment,
    run_command,
    run_serve,
    running_product,
)

pytestmark = pytest.mark.slow
CHAT = "/v1/chat/completions"


def a_chat(**given: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 3,
        **given,
    }


def a_question(text: str) -> dict[str, Any]:
    return a_chat(messages=[{"role": "user", "content": text}])


REFUSED: list[tuple[str, str, Any, int, str]] = [
    ("empty prompt", CHAT, a_chat(messages=[{"role": "user", "content": ""}]), 400, "empty_prompt"),
    ("no messages", CHAT, a_chat(messages=[]), 400, "invalid_request"),
    ("empty completion", "/v1/completions", {"prompt": ""}, 400, "empty_prompt"),
    ("empty generate", "/generate", {"prompt": ""}, 400, "empty_prompt"),
    ("not JSON", CHAT, b"{not json", 400, "invalid_json"),
    ("a list", CHAT, b"[]", 400, "invalid_json"),
    ("no body", CHAT, b"", 400, "invalid_json"),
    ("invalid UTF-8", CHAT, b'{"model":"\xff"}', 400, "invalid_json"),
    ("deep JSON", CHAT, b'{"a":' + b"[" * 100_000, 400, "invalid_json"),
    ("wrong type", CHAT, a_chat(messages="hello"), 400, "invalid_request"),
    ("wrong type of limit", CHAT, a_chat(max_tokens="many"), 400, "invalid_request"),
    ("negative limit", CHAT, a_chat(max_tokens=-1), 400, "invalid_request"),
    ("zero limit", "/generate", {"prompt": "x", "max_new_tokens": 0}, 400, "invalid_request"),
    ("unknown field", "/generate", {"prompt": "x", "stream": True}, 400, "invalid_request"),
    ("unsupported", CHAT, a_chat(logit_bias={"5": 1}), 400, "unsupported_parameter"),
    ("unknown model", CHAT, a_chat(model="gpt-9"), 404, "model_not_found"),
    (
        "lone surrogates",
        CHAT,
        b'{"messages":[{"role":"user","content":"\\ud800\\udc"}]}',
        400,
        "invalid_json",
    ),
    (
        "a lone surrogate",
        CHAT,
        b'{"messages":[{"role":"user","content":"\\ud800"}]}',
        400,
        "invalid_json",
    ),
    (
        "too long",
        CHAT,
        a_chat(messages=[{"role": "user", "content": "x y " * 9000}]),
        413,
        "prompt_too_long",
    ),
    (
        "absurdly long",
        CHAT,
        a_chat(messages=[{"role": "user", "content": "z" * 3_000_000}]),
        413,
        "prompt_too_long",
    ),
    ("10 MB", CHAT, b" " * 10_000_000, 413, "request_too_large"),
    ("nowhere", "/v1/nonsense", {}, 404, "endpoint_not_found"),
]


@pytest.fixture(scope="module")
def secret(product: Product) -> str:
    return product.tenant("bad")


@pytest.mark.parametrize("row", REFUSED, ids=[row[0] for row in REFUSED])
def test_bad_requests_are_refused_with_a_stable_code(
    row: tuple[str, str, Any, int, str], product: Product, secret: str
) -> None:
    _, path, body, status, code = row

    answer = product.post(path, secret, body)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.json()["error"]["message"]


def test_nothing_was_charged_for_what_was_refused(product: Product, secret: str) -> None:
    for _, path, body, *_ in REFUSED:
        product.post(path, secret, body)

    assert product.settled_balance_picos("bad") == 10**12
    assert product.verdict()["holds"]


def test_too_long_says_the_count_and_the_limit(product: Product, secret: str) -> None:
    text = "weigh what you take " * 1500

    answer = product.post(CHAT, secret, a_chat(messages=[{"role": "user", "content": text}]))

    counted = product_count(product, text)
    assert f"has {counted} tokens; at most 4096" in answer.json()["error"]["message"]


def product_count(product: Product, text: str) -> int:
    engine = f"http://127.0.0.1:{product.environment['STEELYARD_ENGINE_PORT']}"
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
    return int(httpx.post(f"{engine}/tokenize", json=body).json()["count"])


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "key_missing"),
        ("Basic abc", "key_missing"),
        ("Bearer sk-other", "key_unknown"),
        ("Bearer sk-steelyard-" + "x" * 43, "key_unknown"),
        ("Bearer sk-steelyard-" + "x" * 4000, "key_unknown"),
    ],
)
def test_callers_without_a_good_key_are_401(
    header: str | None, code: str, product: Product
) -> None:
    headers = {"Authorization": header} if header else {}

    answer = httpx.post(product.url + CHAT, json=a_chat(), headers=headers)

    assert (answer.status_code, answer.json()["error"]["code"]) == (401, code)


def test_no_money_is_402_and_says_how_much_is_missing(product: Product) -> None:
    secret = product.tenant("poor", dollars=None)

    answer = product.post(CHAT, secret, a_chat())

    assert answer.status_code == 402
    assert answer.json()["error"]["code"] == "insufficient_funds"
    assert "available: 0 USD" in answer.json()["error"]["message"]


def test_a_key_past_its_rate_is_429_with_retry_after(product: Product) -> None:
    secret = product.tenant("hasty", key_options=("--requests-per-minute", "2"))

    answers = [product.post(CHAT, secret, a_chat(max_tokens=1)) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert 1 <= int(answers[2].headers["retry-after"]) <= 60


def test_a_full_disk_refuses_new_requests_and_loses_nothing(
    tiny_model: Path, tmp_path: Path
) -> None:
    settings = {"STEELYARD_MODEL": str(tiny_model), "STEELYARD_OUTBOX_BYTES_MAX": "65536"}
    with running_product(tmp_path, **settings) as product:
        secret = product.tenant("full")
        # A worker that is at work would make room again.
        product.process_of("worker").suspend()

        served, codes = 0, []
        for _ in range(60):
            answer = product.post(CHAT, secret, a_chat(max_tokens=1))
            if answer.status_code == 200:
                served += 1
            else:
                codes.append((answer.status_code, answer.json()["error"]["code"]))
                if len(codes) == 2:
                    break

        product.process_of("worker").resume()
        assert codes == [(503, "event_log_unavailable")] * 2
        product.settled_balance_picos("full")
        events = product.events("full/it")
        assert (
            len([event for event in events if event["end_cause"] == "stopped_by_limit"]) == served
        )
        assert all("outbox" not in event["end_cause"] for event in events)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"STEELYARD_MODEL": "/no/such/folder"}, "no model folder"),
        ({"STEELYARD_DEVICE": "abacus"}, "abacus"),
        ({"STEELYARD_GATEWAY_PORT": "99999"}, "gateway_port"),
        ({"STEELYARD_DATABASE_URL": "mysql://x"}, "not a database that we know"),
        ({"STEELYARD_CONFIG": "/no/such/file"}, "STEELYARD_CONFIG"),
    ],
)
def test_a_bad_setting_stops_serve_with_a_clear_word(
    settings: dict[str, str], words: str, tiny_model: Path, tmp_path: Path
) -> None:
    environment = product_environment(
        tmp_path / "data", **{"STEELYARD_MODEL": str(tiny_model), **settings}
    )

    finished = run_serve(environment)

    assert finished.returncode != 0
    assert words in finished.stdout + finished.stderr
    assert "Traceback" not in finished.stdout + finished.stderr


def test_a_corrupt_weight_file_stops_serve_and_is_named(tiny_model: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(tiny_model, tmp_path / "damaged"))
    weights = next(damaged.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])

    finished = run_serve(product_environment(tmp_path / "data", STEELYARD_MODEL=str(damaged)))

    assert finished.returncode != 0
    assert weights.name in finished.stdout + finished.stderr
    assert "model_damaged" in finished.stdout + finished.stderr


def test_a_port_in_use_is_named_with_its_setting(product: Product, tmp_path: Path) -> None:
    taken = product.environment["STEELYARD_GATEWAY_PORT"]

    finished = run_serve(product_environment(tmp_path / "data", STEELYARD_GATEWAY_PORT=taken))

    assert finished.returncode != 0
    assert f"port {taken}" in finished.stderr
    assert "STEELYARD_GATEWAY_PORT" in finished.stderr


def test_a_data_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    environment = product_environment(tmp_path / "file" / "data")

    finished = run_command("init", environment=environment)

    assert finished.returncode != 0
    assert "data_folder_unwritable" in finished.stdout
    assert "STEELYARD_DATA_DIR" in finished.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("credit", "add", "bad", "--", "-5"), "amount_not_positive"),
        (("credit", "add", "bad", "0"), "amount_not_positive"),
        (("credit", "add", "bad", "1e3"), "amount_malformed"),
        (("credit", "add", "bad", "0.0000000000001"), "amount_malformed"),
        (("credit", "add", "bad", "5", "--currency", "EUR"), "currency_mismatch"),
        (("credit", "add", "bad", "99999999999"), "balance_too_large"),
        (("credit", "add", "nobody", "5"), "tenant_not_found"),
        (("credit", "add", "bad/it", "5"), "no_own_balance"),
        (("org", "create", "bad"), "name_taken"),
        (("org", "create", "Bad Name"), "name_malformed"),
        (("department", "create", "nobody/it"), "tenant_not_found"),
        (("key", "revoke", "nobody/it/key"), "key_not_found"),
        (("price", "publish", "/no/such/file"), "price_book_malformed"),
        (("price", "show", "nothing"), "price_version_not_found"),
        (("balance", "nobody"), "tenant_not_found"),
    ],
)
def test_bad_commands_change_nothing_and_name_their_code(
    words: tuple[str, ...], code: str, product: Product, secret: str
) -> None:
    assert secret

    finished = run_command(*words, environment=product.environment)

    assert finished.returncode == 1, finished.stderr
    assert f'"code": "{code}"' in finished.stdout
