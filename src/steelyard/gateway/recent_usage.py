"""The attempts that this gateway closed last: asked for before the worker has settled them."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from steelyard.gateway.admission import Admitted
from steelyard.gateway.closing import Closed

ATTEMPTS_MAX: Final = 10_000


@dataclass(slots=True)
class RecentUsage:
    """Remembers so many attempts, and forgets the oldest."""

    _attempts: OrderedDict[str, tuple[str, Closed]] = field(
        default_factory=OrderedDict[str, "tuple[str, Closed]"]
    )

    def add(self, admitted: Admitted, closed: Closed) -> None:
        self._attempts[closed.event_id] = (admitted.opened.organisation_id, closed)
        if len(self._attempts) > ATTEMPTS_MAX:
            self._attempts.popitem(last=False)

    def find(self, event_id: str, *, organisation_id: str) -> Closed | None:
        """The attempt, if it is one of this organisation's."""
        owner, closed = self._attempts.get(event_id, ("", None))
        return closed if owner == organisation_id else None
