"""No history of top-ups, questions and crashes makes or loses money."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from steelyard.gateway.upstreams.scripted import Script
from steelyard.money import read_decimal
from steelyard.settings import read_settings
from tests.world import INPUT_PRICE, OUTPUT_PRICE, World

WORDS = ("w",) * 6


class MoneyHistories(RuleBasedStateMachine):
    """Random business against a ledger of two numbers: what came in, and what was charged."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.world = World(read_settings(data_dir=Path(self.folder.name)))
        self.paid_in = 0

    @initialize()
    def begin(self) -> None:
        self.world.organisation()

    @rule(picos=st.integers(1, 200_000_000))
    def top_up(self, picos: int) -> None:
        self.world.top_up(self.world.tenants["acme"], f"{picos // 10**12}.{picos % 10**12:012d}")
        self.paid_in += picos

    @rule(
        prompt_tokens=st.integers(1, 20),
        max_tokens=st.one_of(st.none(), st.integers(1, 8)),
        stream=st.booleans(),
        leaves_after=st.one_of(st.none(), st.integers(0, 7)),
        fails_after_words=st.one_of(st.none(), st.integers(0, 7)),
    )
    def ask(self, prompt_tokens: int, fails_after_words: int | None, **given: Any) -> None:
        # The scripted model says as many words as it is allowed.
        self.world.upstream.script = Script(
            words=WORDS[: given["max_tokens"] or 6],
            prompt_tokens=prompt_tokens,
            fails_after_words=fails_after_words,
        )
        before = len(self.world.upstream.bodies)

        answered = self.world.chat(**given)

        if len(self.world.upstream.bodies) > before and not answered.error:
            self._clamp_is_kept()

    def _clamp_is_kept(self) -> None:
        body = self.world.upstream.bodies[-1]
        assert body["max_tokens"] >= 1

    @rule()
    def settle(self) -> None:
        self.world.settle()

    @rule(batch_max=st.integers(1, 3))
    def restart_worker(self, batch_max: int) -> None:
        self.world.start_worker(batch_max=batch_max)

    @rule()
    def restart_gateway(self) -> None:
        self.world.stop_gateway()
        self.world.start_gateway()
        self.world.recover()

    @invariant()
    def no_balance_is_negative(self) -> None:
        if "acme" in self.world.tenants:
            assert self.world.balance().available.picos >= 0

    def teardown(self) -> None:
        if "acme" in self.world.tenants:
            self._everything_adds_up()
        self.world.__exit__(None, None, None)
        self.folder.cleanup()

    def _everything_adds_up(self) -> None:
        self.world.settle()
        charged = 0
        for event in self.world.events():
            meters = event.data.meters
            amount = int(meters.get("input.text", 0)) * INPUT_PRICE
            amount += int(meters.get("output.text", 0)) * OUTPUT_PRICE
            assert read_decimal(event.data.amount) == amount
            charged += amount
        suspended = self._stands_on("suspense:USD")
        balance = self.world.balance()
        assert balance.held.picos == 0
        assert balance.total.picos == self.paid_in - charged - suspended
        assert self.world.differences() == []

    def _stands_on(self, account_id: str) -> int:
        with self.world.stores.audit.snapshot() as snapshot:
            return snapshot.balances().get(account_id, 0)


TestMoneyHistories = MoneyHistories.TestCase
TestMoneyHistories.settings = settings(
    max_examples=25,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
