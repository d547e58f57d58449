"""What a seed decides before the history begins: how large the world is, and what goes wrong."""

from dataclasses import dataclass, field, replace
from random import Random
from typing import Literal

from steelyard.metering.usage_event import DisconnectPolicy

Transport = Literal["outbox", "broker"]
Victim = Literal["gateway", "worker", "relay"]
POLICIES: tuple[DisconnectPolicy, ...] = ("drain", "delivered", "prompt_only", "free")
# The part of all histories that are a rush.
RUSHES = 0.15
# In dollars: for a handful of requests, for a thin lease, for everything.
FUNDS = ("0.002", "0.03", "0.3", "5")


@dataclass(frozen=True, slots=True)
class Faults:
    """How likely each fault is, whenever it could happen; and how often chaos strikes."""

    books_refuse: float = 0.0
    books_forget_to_answer: float = 0.0
    disk_tears: float = 0.0
    disk_refuses: float = 0.0
    broker_refuses: float = 0.0
    broker_forgets_to_answer: float = 0.0
    sleeps: float = 0.0
    upstream_fails: float = 0.0
    client_leaves: float = 0.0
    strikes: int = 0

    @classmethod
    def drawn(cls, chance: Random) -> "Faults":
        """Some kinds of fault each time: all of them at once would hide what one alone does."""

        def rate(most: float) -> float:
            return chance.uniform(0, most) if chance.random() < 0.5 else 0.0

        return cls(
            books_refuse=rate(0.05),
            books_forget_to_answer=rate(0.05),
            disk_tears=rate(0.08),
            disk_refuses=rate(0.08),
            broker_refuses=rate(0.2),
            broker_forgets_to_answer=rate(0.2),
            sleeps=rate(0.05),
            upstream_fails=rate(0.3),
            client_leaves=rate(0.5),
            strikes=chance.choice((0, 3, 6, 10)),
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """A history before it happens."""

    seed: int
    gateways: int = 2
    workers: int = 2
    clients: int = 3
    requests_each: int = 4
    think_s: float = 0.8
    keys: int = 4
    transport: Transport = "outbox"
    lease_ttl_s: float = 5.0
    funds: str = "5"
    token_budget: int | None = None
    # So many tokens of a stream are held for at a time; 0: the whole answer at once.
    hold_chunk_tokens: int = 0
    outbox_bytes_max: int = 1_000_000
    batch_max: int = 10
    # The longest that a commit of an outbox, or of the hold desk, waits for its turn.
    commit_s: float = 0.004
    faults: Faults = field(default_factory=Faults)
    # Which rule of the product is broken on purpose; a name in `bugs.py`.
    bug: str | None = None
    # Kill the first process of this kind between two steps of the event loop.
    victim: Victim = "gateway"
    kill_at_step: int | None = None

    @classmethod
    def drawn(cls, seed: int) -> "Plan":
        chance = Random(f"plan {seed}")
        plan = cls(
            seed=seed,
            gateways=chance.choice((1, 2, 2, 3)),
            workers=chance.choice((1, 2, 2, 3)),
            clients=chance.randint(1, 6),
            requests_each=chance.randint(1, 8),
            think_s=chance.choice((0.1, 0.8)),
            keys=chance.choice((1, 1, 2, 4)),
            transport=chance.choice(("outbox", "broker")),
            lease_ttl_s=chance.choice((0.0, 2.0, 10.0, 10.0)),
            funds=chance.choice(FUNDS),
            token_budget=chance.choice((None, None, 2_000, 20_000)),
            hold_chunk_tokens=chance.choice((0, 0, 3)),
            outbox_bytes_max=chance.choice((60_000, 200_000, 1_000_000)),
            batch_max=chance.choice((1, 3, 20)),
            commit_s=chance.choice((0.004, 0.004, 0.2)),
            faults=Faults.drawn(chance),
        )
        return plan.as_rush() if chance.random() < RUSHES else plan

    @classmethod
    def with_kill(cls, victim: Victim, transport: Transport, step: int | None) -> "Plan":
        """A small world without any other fault."""
        return cls(
            seed=1,
            gateways=1,
            workers=1,
            clients=1,
            requests_each=2,
            keys=1,
            transport=transport,
            victim=victim,
            kill_at_step=step,
        )

    def again(self) -> str:
        """The command that lets the same history happen."""
        if self.kill_at_step is not None:
            return f"make sim KILL={self.victim}:{self.transport}:{self.kill_at_step}"
        return f"make sim SEED={self.seed}" + (f" BUG='{self.bug}'" if self.bug else "")

    def as_rush(self) -> "Plan":
        """Everybody spends of one key at once, until its leases are used up."""
        return replace(
            self,
            clients=8,
            requests_each=10,
            think_s=0.02,
            keys=1,
            lease_ttl_s=10.0,
            funds="0.02",
            outbox_bytes_max=1_000_000,
        )
