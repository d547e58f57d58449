"""The process that drafts the events of a large recovery."""

from collections.abc import Sequence

import anyio
import msgspec
import pytest

from steelyard.clock import SystemClock
from steelyard.gateway.crash_drafts import CrashDrafts, LeftAttempt, Part
from steelyard.gateway.event_draft import Held, OpenedTerms
from steelyard.gateway.prices import PriceDirectory
from steelyard.gateway.recovery_process import DraftingProcess
from steelyard.gateway.snapshot import Snapshot
from steelyard.pricing.price_book import PriceVersion

OPENED = OpenedTerms(
    organisation_id="o",
    payer_id="o",
    is_streamed=True,
    model_served="m",
    upstream="u",
    admitted_at=SystemClock().now(),
    price_version="p",
    currency="USD",
)


class WatchedDraftingProcess(DraftingProcess):
    """Tells when a part is drafted, and how the process ended."""

    def has_drafted(self) -> bool:
        return self._connection.poll(timeout=30)

    @property
    def exit_code(self) -> int | None:
        return self._process.exitcode


def test_a_gateway_that_stops_before_it_has_taken_a_part_leaves_no_trace(
    capfd: pytest.CaptureFixture[str],
) -> None:
    snapshot = Snapshot[Sequence[PriceVersion]](list, lambda: 1)
    anyio.run(snapshot.refresh)
    clock = SystemClock()
    drafting = WatchedDraftingProcess(CrashDrafts(PriceDirectory(snapshot, clock)))
    attempt = LeftAttempt(Held("a", 1, None), msgspec.json.encode(OPENED))
    drafting.hand_over(Part([attempt], {}), at=clock.now())
    assert drafting.has_drafted()

    drafting.close()

    assert drafting.exit_code == 0
    assert "Traceback" not in capfd.readouterr().err
