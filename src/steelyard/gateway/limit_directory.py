"""Which limits are in force over a request: those of its key, of every place above it, and of its
model."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from steelyard.access.limits import (
    NO_LIMITS,
    AddressNotAllowed,
    CountedPlace,
    IpAddress,
    IpRange,
    LimitScope,
    LimitSet,
    ModelNotAllowed,
    is_within,
    read_ip_range,
)
from steelyard.access.virtual_key import VirtualKey
from steelyard.gateway.snapshot import Snapshot

FOUND_MAX: Final = 10_000
LimitsByPlace = Mapping[tuple[LimitScope, str], LimitSet]
_Place = tuple[LimitScope, str, LimitSet]


@dataclass(frozen=True, slots=True)
class LimitDefaults:
    """What holds for a key of which nothing else is said; tokens and requests."""

    input_tokens_max: int
    output_tokens_default: int
    requests_per_minute: int
    tokens_per_minute: int | None = None
    requests_at_once: int | None = None
    output_tokens_max: int | None = None

    def of_key(self, own: LimitSet) -> LimitSet:
        """What is counted of a key."""
        requests, tokens, at_once = (
            own.requests_per_minute,
            own.tokens_per_minute,
            own.requests_at_once,
        )
        return LimitSet(
            requests_per_minute=self.requests_per_minute if requests is None else requests,
            tokens_per_minute=self.tokens_per_minute if tokens is None else tokens,
            requests_at_once=self.requests_at_once if at_once is None else at_once,
        )


@dataclass(frozen=True, slots=True)
class LimitsInForce:
    """What one request may be: the lowest of all that is said."""

    counted: tuple[CountedPlace, ...]
    input_tokens_max: int
    output_tokens_max: int | None


@dataclass(slots=True)
class LimitDirectory:
    """Looks limits up, in memory."""

    snapshot: Snapshot[LimitsByPlace]
    defaults: LimitDefaults
    # What was found since the limits were last read, and of which copy of a key.
    _found: dict[tuple[str, str, str | None], tuple[VirtualKey, LimitsInForce]] = field(
        default_factory=dict[tuple[str, str, str | None], tuple[VirtualKey, LimitsInForce]]
    )
    _found_ranges: dict[str, tuple[VirtualKey, Sequence[tuple[str, ...]]]] = field(
        default_factory=dict[str, tuple[VirtualKey, Sequence[tuple[str, ...]]]]
    )
    _found_in: LimitsByPlace | None = None

    def over(self, key: VirtualKey, *, model: str, asked: str | None = None) -> LimitsInForce:
        """The limits over a key that asks for a model, by this name or its own; raises
        ModelNotAllowed."""
        self._forget_if_old()
        found = self._found.get((key.id, model, asked))
        if found is not None and found[0] is key:
            return found[1]
        limits = self._over(key, model=model, asked=asked)
        self._found[key.id, model, asked] = key, limits
        return limits

    def _ranges_over(self, key: VirtualKey) -> Sequence[tuple[str, ...]]:
        self._forget_if_old()
        found = self._found_ranges.get(key.id)
        if found is not None and found[0] is key:
            return found[1]
        ranges = [limits.ip_ranges for _, _, limits in self._tree(key) if limits.ip_ranges]
        self._found_ranges[key.id] = key, ranges
        return ranges

    def _forget_if_old(self) -> None:
        full = len(self._found) >= FOUND_MAX or len(self._found_ranges) >= FOUND_MAX
        if full or self._found_in is not self.snapshot.copy:
            self._found_in = self.snapshot.copy
            self._found.clear()
            self._found_ranges.clear()

    def allows_model(self, key: VirtualKey, model: str) -> bool:
        return all(limits.allows_model(model) for _, _, limits in self._tree(key))

    def check_address(self, key: VirtualKey, find: Callable[[], IpAddress | None]) -> None:
        """Raises AddressNotAllowed where a place over the key has ranges without the address of the
        client, which is looked for only then."""
        for texts in self._ranges_over(key):
            address = find()
            if address is None or not is_within(address, _ranges(texts)):
                raise AddressNotAllowed(f"this key does not work from {address or 'here'}")

    def _over(self, key: VirtualKey, *, model: str, asked: str | None) -> LimitsInForce:
        tree = self._tree(key)
        said = [limits for _, _, limits in tree if limits is not NO_LIMITS]
        for limits in said:
            if not limits.allows_model(model, asked or model):
                raise ModelNotAllowed(f"this key may not use the model {model!r}")
        of_model = self.snapshot.copy.get(("model", model), NO_LIMITS)
        own = self.defaults.of_key(tree[-1][2])
        others: list[_Place] = [*tree[:-1], ("model", model, of_model)]
        counted = [place for place in others if place[2].is_counted]
        input_tokens_max = _lowest(limits.input_tokens_max for limits in said)
        if input_tokens_max is None:
            input_tokens_max = self.defaults.input_tokens_max
        output_tokens_max = _lowest(limits.output_tokens_max for limits in said)
        if output_tokens_max is None:
            output_tokens_max = self.defaults.output_tokens_max
        if of_model.input_tokens_max is not None:
            input_tokens_max = min(input_tokens_max, of_model.input_tokens_max)
        return LimitsInForce(
            (CountedPlace("key", key.id, own), *(CountedPlace(*place) for place in counted)),
            input_tokens_max,
            _lowest((output_tokens_max, of_model.output_tokens_max)),
        )

    def _tree(self, key: VirtualKey) -> list[_Place]:
        """The places above a key, and the key itself at the end."""
        find = self.snapshot.copy.get
        department, project = key.department, key.project
        scopes: list[tuple[LimitScope, str]] = [
            ("organisation", department.organisation.id),
            ("department", department.id),
        ]
        if project is not None:
            scopes.append(("project", project.id))
        scopes.append(("key", key.id))
        return [(scope, id_, find((scope, id_), NO_LIMITS)) for scope, id_ in scopes]


@lru_cache(maxsize=1024)
def _ranges(texts: tuple[str, ...]) -> tuple[IpRange, ...]:
    return tuple(read_ip_range(text) for text in texts)


def _lowest(numbers: Iterable[int | None]) -> int | None:
    return min((number for number in numbers if number is not None), default=None)
