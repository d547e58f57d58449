"""What pricing needs from its store."""

from datetime import datetime
from typing import Protocol

from steelyard.errors import Refusal
from steelyard.pricing.price_book import PriceVersion


class PriceVersionTaken(Refusal):
    """A published price book never changes: publish the new prices under a new name."""

    code = "price_version_taken"


class PriceStore(Protocol):
    """Keeps published price books."""

    def publish(self, version: PriceVersion, *, at: datetime) -> None:
        """Publish a version; raises PriceVersionTaken if its name or its content exists."""
        ...

    def versions(self) -> list[PriceVersion]:
        """Every version, in the order of publication."""
        ...

    def revision(self) -> int:
        """Grows with every publication."""
        ...
