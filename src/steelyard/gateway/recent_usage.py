"""The attempts that this gateway closed last: asked for before the worker has settled them."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

import msgspec

from steelyard.gateway.admission import Admitted
from steelyard.gateway.closing import Closed

ATTEMPTS_MAX: Final = 10_000


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    organisation_id: str
    closed: Closed


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Kept)


@dataclass(slots=True)
class RecentUsage:
    """Remembers so many attempts, and forgets the oldest.

    As bytes: few are asked for, and a dozen objects of each would keep what all requests are made of
    out of the processor's cache.
    """

    _attempts: OrderedDict[str, bytes] = field(default_factory=OrderedDict[str, bytes])

    def add(self, admitted: Admitted, closed: Closed) -> None:
        kept = _Kept(admitted.opened.organisation_id, closed)
        self._attempts[closed.event_id] = _encoder.encode(kept)
        if len(self._attempts) > ATTEMPTS_MAX:
            self._attempts.popitem(last=False)

    def find(self, event_id: str, *, organisation_id: str) -> Closed | None:
        """The attempt, if it is one of this organisation's."""
        encoded = self._attempts.get(event_id)
        if encoded is None:
            return None
        kept = _decoder.decode(encoded)
        return kept.closed if kept.organisation_id == organisation_id else None
