"""Histories that a seed decides; and that the simulator finds what it is made to find."""

import os

import pytest

from tests.sim.bugs import BUGS, draw_plan
from tests.sim.history import run_history
from tests.sim.plan import Plan, Transport, Victim

SEEDS_FAST = 5
SEEDS = 500
SEEDS_AT_ONCE = 25
# Each bug is found with one of the first so many seeds.
FOUND_WITHIN = 25
# EVERY_STEP=1 kills between any two steps; else each of these, which is another after each change.
STEPS_APART = 1 if os.environ.get("EVERY_STEP") else 7


def test_a_handful_of_histories_keep_every_promise() -> None:
    outcomes = [run_history(Plan.drawn(seed)) for seed in range(1, SEEDS_FAST + 1)]

    assert [outcome.report() for outcome in outcomes if outcome.problems] == []
    assert sum(outcome.answered for outcome in outcomes) > 10


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1, SEEDS + 1, SEEDS_AT_ONCE))
def test_histories_keep_every_promise(first: int) -> None:
    for seed in range(first, first + SEEDS_AT_ONCE):
        outcome = run_history(Plan.drawn(seed))

        assert not outcome.problems, outcome.report()


def test_the_same_seed_gives_the_same_history() -> None:
    first, second = (run_history(Plan.drawn(3)) for _ in range(2))

    assert first.trace == second.trace
    assert len(first.trace) > 20


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_each_bug_is_found(bug: str) -> None:
    plans = [draw_plan(seed, bug=bug) for seed in range(1, FOUND_WITHIN + 1)]

    found = next((plan.seed for plan in plans if run_history(plan).problems), None)

    print(f"{bug}: found with seed {found}")
    assert found is not None


def test_a_report_says_how_to_see_it_again() -> None:
    outcome = run_history(draw_plan(1, bug="zombie write"))

    assert outcome.problems
    assert outcome.report().endswith("make sim SEED=1 BUG='zombie write'")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "transport"),
    [("gateway", "outbox"), ("worker", "outbox"), ("worker", "broker"), ("relay", "broker")],
)
def test_a_process_may_die_between_any_two_steps(victim: Victim, transport: Transport) -> None:
    undisturbed = run_history(Plan.with_kill(victim, transport, None))
    assert undisturbed.attempts == 2

    for step in range(1, undisturbed.steps, STEPS_APART):
        outcome = run_history(Plan.with_kill(victim, transport, step))

        assert not outcome.problems, outcome.report()
