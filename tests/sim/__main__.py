"""Runs histories: `make sim SEED=7`, `make sim SEEDS=5000`, and more by `python -m tests.sim -h`."""

import argparse
import sys
import time

from tests.sim.bugs import BUGS, draw_plan
from tests.sim.history import Outcome, run_history
from tests.sim.plan import Plan


def main() -> int:
    """Exit status 0 if every history went well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="one history, with its trace")
    parser.add_argument("--kill", help="one small history: VICTIM:TRANSPORT:STEP, with its trace")
    parser.add_argument("--first", type=int, default=1, help="the first of several seeds")
    parser.add_argument("--seeds", type=int, default=500, help="how many seeds")
    parser.add_argument("--bug", choices=list(BUGS), help="break a rule of the product")
    given = parser.parse_args()
    if given.kill:
        victim, transport, step = given.kill.split(":")
        return _show(run_history(Plan.with_kill(victim, transport, int(step))))
    if given.seed is not None:
        return _show(run_history(draw_plan(given.seed, bug=given.bug)))
    return _run_many(range(given.first, given.first + given.seeds), given.bug)


def _show(outcome: Outcome) -> int:
    print(outcome.report())
    return 1 if outcome.problems else 0


def _run_many(seeds: range, bug: str | None) -> int:
    """The first that fails is shown in full."""
    begun = time.perf_counter()
    failed = attempts = answered = 0
    for seed in seeds:
        outcome = run_history(draw_plan(seed, bug=bug))
        attempts += outcome.attempts
        answered += outcome.answered
        if outcome.problems:
            failed += 1
            print(outcome.report() if failed == 1 else f"seed {seed}: {outcome.problems[0]}")
    print(
        f"{len(seeds)} histories, {attempts} attempts, {answered} whole answers, {failed} failed, "
        f"{time.perf_counter() - begun:.0f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
