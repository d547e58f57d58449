"""What hostile clients send: refused cheaply, with a stable code, and nobody else notices."""

import json
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import httpx
import psutil
import pytest

from tests.e2e.scripted_product import ScriptedProduct, running_scripted_product

pytestmark = pytest.mark.slow
SCRIPT = """
models: [scripted]
has_facts: true
answers:
  - words: [two, ' words']
"""
CHAT = "/v1/chat/completions"
HEADER_TIMEOUT_S, BODY_TIMEOUT_S = 2.0, 2.0
MEGABYTE = 1024 * 1024
# What the gateway may grow by, whatever is sent to it. A body of 4 MiB is taken in, parsed and
# copied; fifty are not.
GROWTH_MAX = 48 * MEGABYTE
# For how long another client may wait, on a machine with much else to do.
WAIT_S_MAX = 3.0


@dataclass
class Bystander:
    """Another client, who asks all the time."""

    product: ScriptedProduct
    secret: str
    took_s: list[float] = field(default_factory=list[float])
    statuses: set[int] = field(default_factory=set[int])
    rss_max: int = 0
    _is_over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        gateway = psutil.Process(self.product.processes["gateway"].pid)
        with httpx.Client(timeout=60) as client:
            while not self._is_over.is_set():
                began = time.monotonic()
                headers = {"Authorization": f"Bearer {self.secret}"}
                answer = client.post(self.product.url + CHAT, json=a_chat(), headers=headers)
                self.took_s.append(time.monotonic() - began)
                self.statuses.add(answer.status_code)
                self.rss_max = max(self.rss_max, gateway.memory_info().rss)

    @contextmanager
    def watching(self) -> Generator[None]:
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            thread.join()


def a_chat(text: str = "hello") -> dict[str, object]:
    return {
        "model": "scripted",
        "max_tokens": 5,
        "messages": [{"role": "user", "content": text}],
    }


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Generator[ScriptedProduct]:
    with running_scripted_product(
        tmp_path_factory.mktemp("abuse"),
        SCRIPT,
        STEELYARD_HEADER_TIMEOUT_S=str(HEADER_TIMEOUT_S),
        STEELYARD_BODY_TIMEOUT_S=str(BODY_TIMEOUT_S),
        STEELYARD_REQUESTS_PER_MINUTE="1000000",
    ) as running:
        yield running


@pytest.fixture(scope="module")
def secret(product: ScriptedProduct) -> str:
    return product.tenant("hostile", dollars="100")


@dataclass
class Wire:
    """A connection without a client library between."""

    product: ScriptedProduct
    secret: str
    line: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        port = int(self.product.environment["STEELYARD_GATEWAY_PORT"])
        self.line = socket.create_connection(("127.0.0.1", port), timeout=60)

    def head(self, *headers: str) -> bytes:
        lines = [
            f"POST {CHAT} HTTP/1.1",
            "Host: gateway",
            f"Authorization: Bearer {self.secret}",
            *headers,
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n"

    def send(self, *pieces: bytes) -> None:
        # A peer that has hung up already has said why.
        with suppress(OSError):
            for piece in pieces:
                self.line.sendall(piece)

    def answer(self) -> tuple[int, str]:
        """Status and code of the answer."""
        told = b""
        with suppress(OSError):
            while True:
                head, separator, body = told.partition(b"\r\n\r\n")
                if separator and len(body) >= _length(head):
                    break
                piece = self.line.recv(65536)
                if not piece:
                    break
                told += piece
        head, _, body = told.partition(b"\r\n\r\n")
        assert head, "the connection was closed without a word"
        return int(head.split()[1]), json.loads(body)["error"]["code"]

    def is_closed_within(self, seconds: float) -> bool:
        self.line.settimeout(seconds)
        try:
            while self.line.recv(65536):
                pass
        except TimeoutError:
            return False
        except OSError:
            return True
        return True


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


@pytest.fixture
def wire(product: ScriptedProduct, secret: str) -> Iterator[Callable[[], Wire]]:
    opened: list[Wire] = []

    def open_one() -> Wire:
        opened.append(Wire(product, secret))
        return opened[-1]

    yield open_one
    for each in opened:
        each.line.close()


Open = Callable[[], Wire]


def announced_body(open_one: Open) -> tuple[int, str]:
    wire = open_one()
    wire.send(wire.head(f"Content-Length: {50 * MEGABYTE}"))
    wire.send(*(b" " * MEGABYTE for _ in range(50)))
    return wire.answer()


def chunked_body(open_one: Open) -> tuple[int, str]:
    wire = open_one()
    piece = b"%x\r\n" % MEGABYTE + b" " * MEGABYTE + b"\r\n"
    wire.send(wire.head("Transfer-Encoding: chunked"), *(piece for _ in range(50)), b"0\r\n\r\n")
    return wire.answer()


def with_body(body: bytes) -> Callable[[Open], tuple[int, str]]:
    def send(open_one: Open) -> tuple[int, str]:
        wire = open_one()
        wire.send(wire.head(f"Content-Length: {len(body)}"), body)
        return wire.answer()

    return send


def one_long_header(open_one: Open) -> tuple[int, str]:
    wire = open_one()
    wire.send(b"GET /health HTTP/1.1\r\nX-Bomb: ", *(b"x" * MEGABYTE for _ in range(10)))
    return wire.answer()


def many_headers(open_one: Open) -> tuple[int, str]:
    wire = open_one()
    wire.send(wire.head(*(f"X-Bomb-{number}: x" for number in range(100_000))))
    return wire.answer()


def not_http(open_one: Open) -> tuple[int, str]:
    wire = open_one()
    wire.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 100)
    return wire.answer()


DEEP = b'{"model":"scripted","messages":' + b"[" * 100_000
DEEP_UNKNOWN = (
    b'{"model":"scripted","messages":[{"role":"user","content":"x"}],"other":'
    + b"[" * 100_000
    + b"]" * 100_000
    + b"}"
)
MILLION_TOKENS = json.dumps(a_chat("a b " * 500_000)).encode()
MANY_MESSAGES = json.dumps(
    {"model": "scripted", "messages": [{"role": "user", "content": "a"}] * 100_000}
).encode()
ATTACKS: dict[str, tuple[Callable[[Open], tuple[int, str]], tuple[int, str]]] = {
    "50 MB, announced": (announced_body, (413, "request_too_large")),
    "50 MB, in chunks": (chunked_body, (413, "request_too_large")),
    "100,000 deep": (with_body(DEEP), (400, "invalid_json")),
    "100,000 deep in what we do not read": (with_body(DEEP_UNKNOWN), (400, "invalid_json")),
    "invalid UTF-8": (with_body(b'{"model":"\xff\xfe"}'), (400, "invalid_json")),
    "a million tokens": (with_body(MILLION_TOKENS), (413, "prompt_too_long")),
    "100,000 messages": (with_body(MANY_MESSAGES), (413, "prompt_too_long")),
    "a header of 10 MB": (one_long_header, (431, "headers_too_large")),
    "100,000 headers": (many_headers, (431, "headers_too_large")),
    "no HTTP": (not_http, (400, "http_malformed")),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_with_its_code_while_memory_is_flat_and_others_are_served(
    name: str, product: ScriptedProduct, secret: str, wire: Open
) -> None:
    attack, refused = ATTACKS[name]
    gateway = psutil.Process(product.processes["gateway"].pid)
    product.post(CHAT, secret, a_chat())
    before = gateway.memory_info().rss
    bystander = Bystander(product, secret)

    began = gateway.cpu_times().user
    answers: list[tuple[int, str]] = []
    with bystander.watching():
        while len(answers) < 10 or len(bystander.took_s) < 5:
            answers.append(attack(wire))
    spent_s = gateway.cpu_times().user - began

    print(
        f"{name}: rss +{(bystander.rss_max - before) / MEGABYTE:.1f} MiB,",
        f"bystander {len(bystander.took_s)} answers, slowest {max(bystander.took_s):.3f} s,",
        f"{spent_s / len(answers):.3f} s of processor an attack, bystander included",
    )
    assert set(answers) == {refused}
    assert bystander.statuses == {200}
    assert max(bystander.took_s) < WAIT_S_MAX
    assert bystander.rss_max - before < GROWTH_MAX


def test_slow_headers_are_cut_off_with_a_word_and_others_are_served(
    product: ScriptedProduct, secret: str, wire: Open
) -> None:
    bystander = Bystander(product, secret)
    gateway = psutil.Process(product.processes["gateway"].pid)
    before = gateway.memory_info().rss
    slow = [wire() for _ in range(300)]

    with bystander.watching():
        began = time.monotonic()
        for letter in b"POST /v1/chat/completions HTTP/1.1\r\nX-Slow: ".decode():
            for each in slow:
                each.send(letter.encode())
            time.sleep(0.1)
        answers = {each.answer() for each in slow}
        took_s = time.monotonic() - began

    assert answers == {(408, "request_timeout")}
    assert took_s < 30
    assert bystander.statuses == {200}
    assert max(bystander.took_s) < WAIT_S_MAX
    assert bystander.rss_max - before < GROWTH_MAX


def test_a_connection_that_says_nothing_is_closed(wire: Open) -> None:
    assert wire().is_closed_within(HEADER_TIMEOUT_S + 5)


def test_a_slow_body_is_refused_and_the_connection_closed(wire: Open) -> None:
    slow = wire()
    slow.send(slow.head("Content-Length: 1000"), b'{"model"')

    answer = slow.answer()

    assert answer == (408, "request_timeout")
    assert slow.is_closed_within(HEADER_TIMEOUT_S + 5)


def test_a_body_that_never_ends_is_cut_off_after_its_refusal(wire: Open) -> None:
    endless = wire()
    endless.send(endless.head(f"Content-Length: {10**12}"))
    assert endless.answer() == (413, "request_too_large")
    began = time.monotonic()

    with pytest.raises(OSError):
        while time.monotonic() - began < HEADER_TIMEOUT_S + 20:
            endless.line.sendall(b" " * 65536)
            time.sleep(0.02)


def test_a_connection_is_kept_for_the_next_request_after_a_refusal(wire: Open) -> None:
    kept = wire()
    for _ in range(3):
        kept.send(kept.head("Content-Length: 2"), b"[]")
        assert kept.answer() == (400, "invalid_json")


def test_requests_that_follow_at_once_after_a_large_one_are_no_header_bomb(
    product: ScriptedProduct, wire: Open
) -> None:
    kept = wire()
    large = b'{"a":"' + b"x" * 100_000 + b'"}'
    one = kept.head(f"Content-Length: {len(large)}") + large

    kept.send(one * 3)

    assert kept.answer()[0] == 400
