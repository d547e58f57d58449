"""Answers that are kept: for who asks again with the same key, and for who asks the same thing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from steelyard.errors import Failure


class AnswersUnavailable(Failure):
    """Kept answers cannot be read or written, so that no Idempotency-Key is taken now."""

    code = "answers_unavailable"


class Place(NamedTuple):
    """Where an answer is kept: each owner, a virtual key or an organisation, has its own names."""

    owner_id: str
    name: str


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """An answer: `events` of a stream, one body otherwise. Whoever gives it to a client as it was
    says whether it `is_streamed`."""

    digest: str
    headers: Mapping[str, str]
    events: tuple[bytes, ...]
    is_streamed: bool = False


@dataclass(frozen=True, slots=True)
class StillRunning:
    """The first request with this key is not over."""

    digest: str


class AnswerStore(Protocol):
    """Keeps answers; every method raises AnswersUnavailable."""

    def begin(self, place: Place, *, digest: str) -> KeptAnswer | StillRunning | None:
        """What is known of this place; None where it was nobody's, and now is the caller's."""
        ...

    def keep(self, place: Place, answer: KeptAnswer) -> None: ...

    def give_up(self, place: Place) -> None:
        """Leave no trace: the next request with this key is a first one."""
        ...

    def forget(self, place: Place) -> None:
        """Drop an answer that was kept."""
        ...
