"""The price that applies to a request now."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec

from steelyard.access.tenant import Organisation
from steelyard.clock import Clock
from steelyard.gateway.snapshot import Snapshot
from steelyard.money import Currency, write_decimal
from steelyard.pricing.price_book import (
    LIST,
    AppliesTo,
    ModelPrices,
    PriceNotFound,
    PriceVersion,
    version_in_force,
)

MODELS_REMEMBERED_MAX = 10_000
FOUND_MAX = 10_000
START_OF_TIME = datetime.min.replace(tzinfo=UTC)


class PinnedPrices(msgspec.Struct, frozen=True):
    """The prices of one model at a moment, pinned to the version they come from.

    `listed` is the entry as it was published; `prices` are those of the windows open at `at`.
    """

    version: PriceVersion
    listed: ModelPrices
    prices: ModelPrices
    at: datetime

    @property
    def currency(self) -> Currency:
        return self.version.book.currency

    def as_document(self) -> dict[str, Any]:
        """The prices for people and clients; amounts are decimal strings."""
        document: dict[str, Any] = {
            "currency": self.currency,
            "price_version": self.version.sha256,
            "meters": {meter: price.as_document() for meter, price in self.prices.meters.items()},
        }
        if self.prices.minimum is not None:
            document["minimum"] = write_decimal(self.prices.minimum)
        if self.prices.equivalent_tokens:
            document["equivalent_tokens"] = {
                meter: formula.text for meter, formula in self.prices.equivalent_tokens.items()
            }
        windows = {
            meter: price.as_document()["windows"]
            for meter, price in self.listed.meters.items()
            if price.windows
        }
        if self.listed.batch is not None:
            batch = self.listed.batch.at(self.at)
            document["batch"] = {meter: p.as_document() for meter, p in batch.meters.items()}
        return document | ({"windows": windows} if windows else {})


@dataclass(slots=True)
class PriceDirectory:
    """Resolves prices at admission; what it returns stays true for the whole request."""

    snapshot: Snapshot[Sequence[PriceVersion]]
    clock: Clock
    _entries: dict[tuple[str, str, bool], ModelPrices | None] = field(
        default_factory=dict[tuple[str, str, bool], "ModelPrices | None"]
    )
    # What is in force for whom, of which copy, and from when until when that holds.
    _found: dict[tuple[str, str | None, Currency], Sequence[PriceVersion]] = field(
        default_factory=dict[tuple[str, "str | None", Currency], Sequence[PriceVersion]]
    )
    _found_in: Sequence[PriceVersion] | None = None
    _found_at: datetime = START_OF_TIME
    _found_until: datetime | None = None

    def pin(
        self, model: str, *, organisation: Organisation, is_batch: bool = False
    ) -> PinnedPrices:
        """The organisation's contract goes before its plan, and that before the list; what one
        does not price, the next may. Raises PriceNotFound: what has no price is not served."""
        now = self.clock.now()
        found = self._find(organisation, now)
        looked_in: list[str] = []
        for version in found:
            listed = self._entry(version, model, is_batch=is_batch)
            if listed:
                return PinnedPrices(version, listed, listed.at(now), now)
            looked_in.append(repr(version.book.name))
        if looked_in:
            raise PriceNotFound(
                f"the price book {' and '.join(looked_in)} has no price for the model {model!r}, "
                "so it is not served"
            )
        currencies = {version.book.currency for version in self.snapshot.copy}
        if currencies - {organisation.currency}:
            raise PriceNotFound(
                f"prices are in {', '.join(sorted(currencies))}, "
                f"but your balance is in {organisation.currency}"
            )
        raise PriceNotFound(
            "no price book is in force yet; publish one with 'steelyard price publish FILE'"
        )

    def version(self, sha256: str) -> PriceVersion | None:
        """A published version, whether it is in force or not."""
        for version in self.snapshot.copy:
            if version.sha256 == sha256:
                return version
        return None

    def pinned(
        self, sha256: str, *, model: str, at: datetime, is_batch: bool = False
    ) -> PinnedPrices:
        """The prices that were pinned before, by their version; raises PriceNotFound."""
        version = self.version(sha256)
        listed = self._entry(version, model, is_batch=is_batch) if version else None
        if version is None or listed is None:
            raise PriceNotFound(f"the price version {sha256} does not price the model {model!r}")
        return PinnedPrices(version, listed, listed.at(at), at)

    def _find(self, organisation: Organisation, now: datetime) -> Sequence[PriceVersion]:
        """The versions in force for an organisation: the same until another one is published, or
        one that was comes into force."""
        versions = self.snapshot.copy
        if self._found_in is not versions or now < self._found_at or len(self._found) >= FOUND_MAX:
            self._found_in, self._found_at = versions, now
            self._found.clear()
            starts = [version.book.effective_from for version in versions]
            self._found_until = min((start for start in starts if start > now), default=None)
        elif self._found_until is not None and now >= self._found_until:
            self._found_in = None
            return self._find(organisation, now)
        name = organisation.name, organisation.plan, organisation.currency
        found = self._found.get(name)
        if found is None:
            found = self._found[name] = list(self._in_force(organisation, now))
        return found

    def _in_force(self, organisation: Organisation, now: datetime) -> Iterator[PriceVersion]:
        scopes = [AppliesTo("organisation", organisation.name)]
        if organisation.plan:
            scopes.append(AppliesTo("plan", organisation.plan))
        for scope in (*scopes, LIST):
            version = version_in_force(
                self.snapshot.copy, at=now, applies_to=scope, currency=organisation.currency
            )
            if version:
                yield version

    def _entry(self, version: PriceVersion, model: str, *, is_batch: bool) -> ModelPrices | None:
        """A published book never changes, so what it says of a model is looked up once."""
        key = (version.sha256, model, is_batch)
        if key not in self._entries:
            if len(self._entries) >= MODELS_REMEMBERED_MAX:
                self._entries.clear()
            entry = version.book.prices_of(model)
            self._entries[key] = entry and entry.chosen(is_batch=is_batch)
        return self._entries[key]
