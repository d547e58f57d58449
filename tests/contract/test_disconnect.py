"""What a client that leaves is charged: each policy, each way of leaving, and every byte."""

from dataclasses import replace
from typing import Any

import anyio
import pytest

from steelyard.access.limits import LimitSet
from steelyard.app.disconnect_setting import DisconnectPolicyMalformed, read_policies
from steelyard.billing.settlement_matrix import MATRIX, POLICIES
from steelyard.gateway.disconnect_policies import DisconnectPolicies
from steelyard.gateway.upstreams.scripted import Script
from steelyard.metering.usage_event import DisconnectPolicy
from tests.world import INPUT_PRICE, OUTPUT_PRICE, World

WORDS = ("one", "two", "three", "four", "five")
PROMPT_TOKENS = 7
OTHER_POLICIES: tuple[DisconnectPolicy, ...] = ("drain", "prompt_only", "free")
PROMPT = PROMPT_TOKENS * INPUT_PRICE
ALL_OF_IT = PROMPT + len(WORDS) * OUTPUT_PRICE

AFTER_TWO = {"stream": True, "stops_reading_after": 2}
BEFORE_ANY = {"stream": True, "takes_bytes": 0}
WHOLE = {"leaves_after": 0}
# Way of leaving, policy, cause, charge.
ROWS: list[tuple[dict[str, Any], DisconnectPolicy, str, int]] = [
    (AFTER_TWO, "drain", "client_left", ALL_OF_IT),
    (AFTER_TWO, "delivered", "client_left", PROMPT + 2 * OUTPUT_PRICE),
    (AFTER_TWO, "prompt_only", "client_left", PROMPT),
    (AFTER_TWO, "free", "client_left", 0),
    (BEFORE_ANY, "drain", "client_left_before_first_token", ALL_OF_IT),
    (BEFORE_ANY, "delivered", "client_left_before_first_token", 0),
    (BEFORE_ANY, "prompt_only", "client_left_before_first_token", PROMPT),
    (BEFORE_ANY, "free", "client_left_before_first_token", 0),
    (WHOLE, "drain", "client_left_before_first_token", ALL_OF_IT),
    (WHOLE, "delivered", "client_left_before_first_token", 0),
    (WHOLE, "prompt_only", "client_left_before_first_token", 0),
    (WHOLE, "free", "client_left_before_first_token", 0),
]


@pytest.mark.parametrize(("leaving", "policy", "cause", "picos"), ROWS)
def test_a_client_that_leaves_is_charged_by_the_policy_of_its_key(
    leaving: dict[str, Any], policy: DisconnectPolicy, cause: str, picos: int, world: World
) -> None:
    world.organisation(dollars="1")
    world.keys["acme"] = replace(world.keys["acme"], disconnect_policy=policy)
    world.upstream.script = Script(words=WORDS, prompt_tokens=PROMPT_TOKENS)

    world.chat(**leaving)
    world.settle()

    (event,) = world.events()
    assert (event.data.end_cause, event.data.disconnect_policy) == (cause, policy)
    assert world.balance().total.picos == 10**12 - picos
    assert world.balance().held.picos == 0
    assert world.differences() == []


@pytest.mark.parametrize(
    "policy", ["delivered", *(pytest.param(p, marks=pytest.mark.slow) for p in OTHER_POLICIES)]
)
def test_a_stream_that_is_cut_at_any_byte_is_charged_exactly_what_the_matrix_says(
    policy: DisconnectPolicy, sqlite_world: World
) -> None:
    world = sqlite_world
    world.organisation(dollars="1")
    world.keys["acme"] = replace(world.keys["acme"], disconnect_policy=policy)
    many = LimitSet(requests_per_minute=10**6)
    world.stores.access.set_limits("key", world.keys["acme"].id, many)
    world.upstream.script = Script(words=WORDS, prompt_tokens=PROMPT_TOKENS)
    recorded = world.chat(stream=True)
    lengths = [len(f"data: {event}\n\n") for event in recorded.client.events]
    assert len(lengths) == len(WORDS) + 3

    async def cut_everywhere() -> None:
        for k in range(sum(lengths) + 1):
            await world.chat_async("acme", {"stream": True, "takes_bytes": k})

    anyio.run(cut_everywhere)
    world.settle()

    charged = [event.data.amount for event in world.events()][1:]
    assert charged == [_decimal(_charge(policy, lengths, k)) for k in range(sum(lengths) + 1)]
    assert world.differences() == []


@pytest.mark.parametrize(("missing", "picos"), [(1, 0), (0, PROMPT + 2 * OUTPUT_PRICE)])
def test_events_that_came_together_are_charged_where_the_client_took_them(
    missing: int, picos: int, sqlite_world: World
) -> None:
    world = sqlite_world
    world.organisation(dollars="1")
    world.upstream.script = Script(words=WORDS, prompt_tokens=PROMPT_TOKENS)
    events = world.chat(stream=True).client.events[:2]
    told = "".join(
        f'data: {event[:-1]},"usage":{{"prompt_tokens":{PROMPT_TOKENS},"completion_tokens":{at}}}}}\n\n'
        for at, event in enumerate(events, 1)
    )
    world.upstream.script = Script(raw=told.encode())
    size = sum(len(f"data: {event}\n\n") for event in events)

    world.chat(stream=True, takes_bytes=size - missing)
    world.settle()

    assert world.balance().total.picos == 10**12 - ALL_OF_IT - picos
    assert world.differences() == []


def test_the_key_goes_before_the_model_and_that_before_the_gateway(sqlite_world: World) -> None:
    sqlite_world.organisation()
    key = sqlite_world.keys["acme"]
    policies = DisconnectPolicies("prompt_only", read_policies("small=free, a/b=drain"))

    chosen = [
        policies.policy_of(given, model=model, is_repeatable=is_repeatable)
        for given, model, is_repeatable in (
            (key, "large", False),
            (key, "small", False),
            (key, "a/b", False),
            (replace(key, disconnect_policy="delivered"), "small", False),
            (replace(key, disconnect_policy="delivered"), "small", True),
        )
    ]

    assert chosen == ["prompt_only", "free", "drain", "delivered", "free"]


@pytest.mark.parametrize("text", ["small", "small=gratis", "=free"])
def test_a_policy_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(DisconnectPolicyMalformed, match="MODEL=POLICY"):
        read_policies(text)


def test_every_policy_has_a_basis_and_every_cause_a_row() -> None:
    assert set(POLICIES) == {"delivered", *OTHER_POLICIES}
    assert {cause for cause, basis in MATRIX.items() if basis == "policy"} == {
        "client_left",
        "client_left_before_first_token",
        "gateway_stopped",
        "gateway_crashed",
    }


def _charge(policy: DisconnectPolicy, lengths: list[int], k: int) -> int:
    """By a path of its own: what a client that takes k bytes of these events pays."""
    words, taken = len(WORDS), 0
    handed = 0
    while handed < len(lengths) and taken + lengths[handed] <= k:
        taken += lengths[handed]
        handed += 1
    # With the last chunk of text and the one that says why it ended, the answer is whole.
    if handed > words or policy == "drain":
        return ALL_OF_IT
    if policy == "delivered":
        return PROMPT + handed * OUTPUT_PRICE if handed else 0
    return PROMPT if policy == "prompt_only" else 0


def _decimal(picos: int) -> str:
    text = f"{picos / 10**12:.12f}".rstrip("0").rstrip(".")
    return text or "0"
