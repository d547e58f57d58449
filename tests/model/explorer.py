"""Every state that a small model can get into: breadth first, with the way that led there.

A model is a start, its steps, what must hold in each state, and which states are quiet. From every
state that can be reached a quiet one has to be reachable again: nothing is stuck for good.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

State = TypeVar("State", bound=Hashable)
Steps = Callable[[State], Iterable[tuple[str, State]]]


class Violated(AssertionError):
    """A state that must not be, and the steps to it."""


@dataclass(frozen=True)
class Explored(Generic[State]):
    """All states that can be reached, each with the step and the state that it was first seen from."""

    came_from: dict[State, tuple[str, State] | None]

    @property
    def count(self) -> int:
        return len(self.came_from)


def explore(
    start: State,
    *,
    steps: Steps[State],
    problem: Callable[[State], str | None],
    is_quiet: Callable[[State], bool],
) -> Explored[State]:
    """Visit every state; raises Violated with the shortest way to one that breaks a rule."""
    explored = Explored[State]({start: None})
    before: dict[State, list[State]] = {start: []}
    waiting = deque([start])
    while waiting:
        state = waiting.popleft()
        found = problem(state)
        if found is not None:
            raise Violated(f"{found}: {_tell(explored, state)}")
        for name, following in steps(state):
            before.setdefault(following, []).append(state)
            if following not in explored.came_from:
                explored.came_from[following] = name, state
                waiting.append(following)
    stuck = _without_way_to(before, quiet=[state for state in before if is_quiet(state)])
    if stuck is not None:
        raise Violated(f"nothing leads to rest: {_tell(explored, stuck)}")
    return explored


def _without_way_to(before: dict[State, list[State]], *, quiet: list[State]) -> State | None:
    """The first state from which no quiet one can be reached."""
    good = set(quiet)
    waiting = deque(quiet)
    while waiting:
        for state in before[waiting.popleft()]:
            if state not in good:
                good.add(state)
                waiting.append(state)
    return next((state for state in before if state not in good), None)


def _tell(explored: Explored[State], state: State) -> str:
    return "; ".join(reversed([*_way(explored, state)])) or "at the start"


def _way(explored: Explored[State], state: State) -> Iterator[str]:
    step = explored.came_from[state]
    while step is not None:
        name, state = step
        yield name
        step = explored.came_from[state]
