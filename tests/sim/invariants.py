"""What must be true of a history that is over."""

from collections import Counter
from collections.abc import Mapping, Sequence

from steelyard.billing.reconciliation import Reconciliation
from steelyard.billing.verification import verify_books
from steelyard.metering.usage_event import UsageEvent, decode_event
from steelyard.money import read_decimal
from steelyard.storage.reconciliation import SqlReconciliation
from tests.sim.caller import Told
from tests.sim.engine import Made
from tests.sim.universe import Universe
from tests.world import INPUT_PRICE, OUTPUT_PRICE

WHOLE = {"completed", "stopped_by_limit"}
# The end of an answer comes with a cost that is final.
TOLD = WHOLE | {"hold_growth_denied"}
NOTHING = (0, 0)


def final_problems(
    universe: Universe, *, made: Mapping[str, Made], told: Sequence[Told]
) -> list[str]:
    """What is wrong with a history that is over: by the books' own proof, by what the upstream
    made, and by what clients were told."""
    stores, paid_in = universe.stores, universe.funds.paid_in
    with stores.reports.snapshot() as snapshot:
        recent = snapshot.recent_events(limit=100_000)
    events = {event.id: event for one in recent for event in [decode_event(one.body)]}
    with stores.audit.snapshot() as snapshot:
        checks = verify_books(snapshot)
        suspended, quarantined = snapshot.suspended_count(), snapshot.quarantined_count()
        balances = snapshot.balances()
    revenue = sum(picos for one, picos in balances.items() if one.startswith("revenue:"))
    suspense = {
        one: picos for one, picos in balances.items() if one.startswith("suspense:") and picos
    }
    charged = sum(_cost(event) for event in events.values())
    return [
        *(f"{c.invariant}: {difference}" for c in checks for difference in c.differences),
        *_unexplained(universe),
        *(f"{suspended} events are suspended" for _ in range(bool(suspended))),
        *(f"{picos} picos stand on {one}" for one, picos in suspense.items()),
        *(f"{quarantined} records are in quarantine" for _ in range(bool(quarantined))),
        *(f"{charged} charged, {revenue} earned" for _ in range(charged != revenue)),
        *(f"{charged} charged of {paid_in}" for _ in range(charged > paid_in)),
        *(
            f"{one} was seen, and is on no disk"
            for one in sorted(universe.seen - universe.recorded)
        ),
        *(
            f"{one} was recorded, and has no event"
            for one in sorted(universe.recorded - events.keys())
        ),
        *_disagreements(events, made, is_growing=bool(universe.plan.hold_chunk_tokens)),
        *_broken_promises(events, told),
    ]


def _unexplained(universe: Universe) -> list[str]:
    """What the worker's reconciliation finds: a gap is one that is there at two looks."""
    reconciliation = Reconciliation(SqlReconciliation(universe.stores.database).snapshot)
    reconciliation.look(is_deep=True)
    found = reconciliation.look(is_deep=True)
    wrong = {name: n for name, n in (*found.picos.items(), *found.records.items()) if n}
    return [f"reconciliation finds {wrong}" for _ in range(bool(wrong))]


def _disagreements(
    events: Mapping[str, UsageEvent], made: Mapping[str, Made], *, is_growing: bool
) -> list[str]:
    return [
        f"the event {event.id} ({event.data.end_cause}, {event.data.disconnect_policy}, "
        f"streamed: {event.data.is_streamed}) has {_counts(event)}; made: {made.get(event.id)}"
        for event in events.values()
        if not _agrees(event, made.get(event.id), is_growing=is_growing)
    ]


def _broken_promises(events: Mapping[str, UsageEvent], told: Sequence[Told]) -> list[str]:
    problems: list[str] = []
    for one in told:
        event = events.get(one.event_id)
        if event is None:
            problems.append(f"a client has the end of {one.event_id}, which has no event")
        elif event.data.end_cause not in TOLD or event.data.amount != one.cost:
            problems.append(
                f"a client was told that {one.event_id} costs {one.cost}; "
                f"it is {event.data.end_cause} for {event.data.amount}"
            )
    counts = Counter(one.event_id for one in told)
    return [*problems, *(f"{many} was answered twice" for many, n in counts.items() if n > 1)]


def _agrees(event: UsageEvent, made: Made | None, *, is_growing: bool) -> bool:
    """Whether an event charges what the settlement matrix says of what the upstream made."""
    counts, cause = _counts(event), event.data.end_cause
    if made is None:
        return counts == NOTHING and cause not in WHOLE
    everything = made.prompt_tokens, made.completion_tokens
    was_handed_over = event.data.is_streamed and made.completion_tokens > 0
    # A hold that cannot grow while the books are away ends a drained answer as well.
    was_cut = is_growing and not made.is_whole and cause != "gateway_crashed"
    match cause:
        case "completed" | "stopped_by_limit":
            return counts == everything and made.is_whole
        case "upstream_failed":
            return counts[0] == made.prompt_tokens and 0 < counts[1] <= made.completion_tokens
        case "hold_growth_denied":
            return counts == NOTHING or _is_part(counts, made)
        case "upstream_failed_before_first_token" | "event_log_failed":
            return counts == NOTHING
        case (
            "client_left" | "client_left_before_first_token" | "gateway_stopped" | "gateway_crashed"
        ):
            pass
        case _:
            return False
    match event.data.disconnect_policy:
        case "free":
            return counts == NOTHING
        case "prompt_only":
            return counts in {NOTHING, (made.prompt_tokens, 0)}
        case "drain" if cause == "gateway_stopped" or made.has_failed or was_cut:
            return counts == NOTHING or _is_part(counts, made)
        case "drain":
            return counts == everything
        case "delivered" if cause == "gateway_crashed":
            return counts == (everything if was_handed_over else NOTHING)
        case "delivered":
            return counts == NOTHING or (event.data.is_streamed and _is_part(counts, made))


def _is_part(counts: tuple[int, int], made: Made) -> bool:
    return counts[0] == made.prompt_tokens and counts[1] <= made.completion_tokens


def _counts(event: UsageEvent) -> tuple[int, int]:
    meters = event.data.meters
    return int(meters.get("input.text", 0)), int(meters.get("output.text", 0))


def _cost(event: UsageEvent) -> int:
    """Priced here once more; what the event itself says of its amount is not believed."""
    prompt, completion = _counts(event)
    cost = prompt * INPUT_PRICE + completion * OUTPUT_PRICE
    assert cost == read_decimal(event.data.amount), f"{event.id} is rated wrongly"
    return cost
