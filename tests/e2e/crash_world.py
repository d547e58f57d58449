"""Gateway, worker and upstream as real processes under load, and a hand that kills them."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx

from steelyard.access.tenant import Department, Organisation
from steelyard.access.virtual_key import VirtualKey, hash_secret, hint_of, make_secret
from steelyard.app.stores import Stores, open_stores
from steelyard.billing.commands import new_command
from steelyard.billing.lease_desk import LeaseDesk
from steelyard.billing.open_holds import list_open_holds
from steelyard.billing.reconciliation import Reconciliation
from steelyard.billing.top_up import add_credit
from steelyard.billing.verification import verify_books
from steelyard.ids import new_id
from steelyard.metering.usage_event import DisconnectPolicy, UsageEvent, decode_event
from steelyard.money import Currency, Money
from steelyard.pricing.price_book import publishable_version
from steelyard.pricing.price_book_yaml import read_price_book
from steelyard.settings import read_settings
from steelyard.storage.database import BooksUnavailable
from steelyard.storage.reconciliation import SqlReconciliation
from tests.e2e.product import wait_until
from tests.e2e.scripted_upstream import Made, read_made
from tests.postgres_server import free_port

USD = Currency("USD")
PRICE_BOOK = """
schema: steelyard.price-book/v1
name: crash
currency: USD
effective_from: 2026-01-01T00:00:00Z
models:
  - match: scripted
    prices:
      input.text: { amount: 2, per: 1M }
      output.text: { amount: 10, per: 1M }
"""
CREDIT = Money(10**15, USD)
CLIENTS = 8


@dataclass
class CrashWorld:
    """Real processes on one set of books; each can be killed, and comes back."""

    folder: Path
    database_url: str | None
    credit: Money = CREDIT
    # More settings of the product.
    given: Mapping[str, Any] = field(default_factory=dict[str, Any])
    processes: dict[str, "subprocess.Popen[bytes]"] = field(
        default_factory=dict[str, "subprocess.Popen[bytes]"]
    )
    # Attempts that a client has seen the first byte of, and those that it has all of.
    begun: set[str] = field(default_factory=set[str])
    answered: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        self.upstream_port, self.gateway_port = free_port(), free_port()
        self.made_log = self.folder / "made.jsonl"
        given: dict[str, Any] = {
            "data_dir": self.folder / "data",
            "database_url": self.database_url,
            "gateway_port": self.gateway_port,
            "engine_url": f"http://127.0.0.1:{self.upstream_port}",
            "requests_per_minute": 10**9,
            "outbox_prune_s": 0.5,
            "outbox_keep_s": 0,
            "outbox_bytes_max": 1024 * 1024,
            "lease_ttl_s": 2,
            "gateway_metrics_port": 0,
            "worker_metrics_port": 0,
            **self.given,
        }
        self.settings = read_settings(**given)
        self.environment = {
            **os.environ,
            **{f"STEELYARD_{k.upper()}": str(v) for k, v in given.items() if v is not None},
        }
        self.stores = open_stores(self.settings, should_migrate=True)
        self.organisation, self.secrets = _found(self.stores, self.credit)

    def start(self, role: str, *, name: str | None = None, **settings: str) -> None:
        """Start a process; a second one of a role has a name and settings of its own."""
        own = {f"STEELYARD_{key.upper()}": value for key, value in settings.items()}
        command = [sys.executable, "-m", "steelyard", role]
        if role == "upstream":
            command = [sys.executable, "-m", "tests.e2e.scripted_upstream"]
            command += ["--port", str(self.upstream_port), "--log", str(self.made_log)]
        with (self.folder / f"{role}.log").open("ab") as log:
            self.processes[name or role] = subprocess.Popen(
                command, env=self.environment | own, stdout=log, stderr=log
            )

    def kill(self, role: str) -> None:
        """SIGKILL, and a new life at once."""
        self.processes[role].kill()
        self.processes[role].wait()
        self.start(role)

    @contextmanager
    def held_still(self, role: str) -> Generator[None]:
        """A process that does nothing while the block runs, after what it began has arrived."""
        process = self.processes[role]
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.5)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def wait_until_ready(self) -> None:
        wait_until(self._is_ready, within_s=120)

    def settle(self) -> None:
        """Wait until every hold has ended, every event is in the books, and the leases of the dead
        and of the idle are back."""
        self.wait_until_ready()
        wait_until(self._has_settled, within_s=240)

    def events(self) -> dict[str, UsageEvent]:
        with self.stores.reports.snapshot() as snapshot:
            recent = snapshot.recent_events(limit=10**6)
        decoded = [decode_event(event.body) for event in recent]
        return {event.id: event for event in decoded}

    def made(self) -> dict[str, Made]:
        return read_made(self.made_log)

    def differences(self) -> list[str]:
        with self.stores.audit.snapshot() as snapshot:
            found = [text for check in verify_books(snapshot) for text in check.differences]
        reconciliation = Reconciliation(SqlReconciliation(self.stores.database).snapshot)
        looks = [reconciliation.look(is_deep=True) for _ in range(2)][-1]
        wrong = {name: n for name, n in (*looks.picos.items(), *looks.records.items()) if n}
        return [*found, *(f"reconciliation finds {wrong}" for _ in range(bool(wrong)))]

    def stop(self) -> None:
        running = [process for process in self.processes.values() if process.poll() is None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.wait(timeout=60)
        self.stores.database.close()

    def last_words(self) -> str:
        tails = [
            f"{path.stem}: {path.read_text()[-1500:]}" for path in sorted(self.folder.glob("*.log"))
        ]
        return "\n".join(tails)

    def _has_settled(self) -> bool:
        try:
            leases = LeaseDesk(self.stores.books, ttl=timedelta()).left_by(source_prefix="")
            return not leases and not list_open_holds(
                self.stores.books, only_unresolved=False, limit=5
            )
        except BooksUnavailable:
            # The connection was one to the server's earlier life.
            return False

    def _is_ready(self) -> bool:
        for role, process in self.processes.items():
            assert process.poll() is None, f"{role} ended by itself\n{self.last_words()}"
        try:
            url = f"http://127.0.0.1:{self.gateway_port}/health"
            return httpx.get(url, timeout=5).status_code == 200
        except httpx.TransportError:
            return False


@contextmanager
def under_load(world: CrashWorld, *, seed: int) -> Generator[None]:
    """Clients that ask without a pause, streamed and whole, until the block ends."""
    stop = threading.Event()
    threads = [
        threading.Thread(target=_ask_on, args=(world, seed * 1000 + n, stop))
        for n in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _ask_on(world: CrashWorld, seed: int, stop: threading.Event) -> None:
    chance = random.Random(seed)
    url = f"http://127.0.0.1:{world.gateway_port}/v1/chat/completions"
    with httpx.Client(timeout=30) as client:
        while not stop.is_set():
            body = {
                "model": "scripted",
                "messages": [{"role": "user", "content": "x" * chance.randrange(1, 30)}],
                "max_tokens": 20,
                "stream": chance.random() < 0.6,
            }
            secret = chance.choice(world.secrets)
            headers = {"Authorization": f"Bearer {secret}"}
            try:
                with client.stream("POST", url, json=body, headers=headers) as answer:
                    if answer.status_code == 200:
                        world.begun.add(answer.headers["x-steelyard-event-id"])
                    content = answer.read()
            except httpx.TransportError:
                stop.wait(0.05)
                continue
            if answer.status_code != 200:
                stop.wait(0.05)
            elif b"[DONE]" in content or not body["stream"]:
                world.answered.append(answer.headers["x-steelyard-event-id"])


def _found(stores: Stores, credit: Money) -> tuple[Organisation, list[str]]:
    """An organisation with money, and a key for each of two policies."""
    now = stores.clock.now()
    organisation = Organisation(new_id(), "acme", USD, now)
    department = Department(new_id(), organisation, "it", "organisation", now)
    stores.access.insert_organisation(organisation)
    stores.access.insert_department(department)
    stores.prices.publish(publishable_version(read_price_book(PRICE_BOOK)), at=now)
    command = new_command(clock=stores.clock, actor="test", reason="test")
    add_credit(stores.books, organisation, amount=credit, command=command)
    secrets: list[str] = []
    policies: tuple[DisconnectPolicy, ...] = ("delivered", "drain")
    for policy in policies:
        secret = make_secret()
        key = VirtualKey(
            id=new_id(),
            name=policy.replace("_", "-"),
            department=department,
            hint=hint_of(secret),
            created_at=now,
            revoked_at=None,
            disconnect_policy=policy,
        )
        stores.access.insert_key(key, secret_hash=hash_secret(secret, pepper=stores.pepper))
        secrets.append(secret)
    return organisation, secrets


def pause(chance: random.Random) -> None:
    """A random moment; that it is random is the point of it."""
    time.sleep(chance.uniform(0.2, 2.0))


def explain(event: UsageEvent, made: Made | None) -> str:
    return (
        json.dumps({"id": event.id, "cause": event.data.end_cause, "meters": event.data.meters})
        + f" made {made}"
    )
