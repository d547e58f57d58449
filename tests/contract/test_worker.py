"""The worker among outboxes that are not what they should be."""

import sqlite3

from tests.world import World


def test_an_outbox_that_is_still_being_made_stops_nobody(sqlite_world: World) -> None:
    sqlite_world.organisation(dollars="1")
    half_made = sqlite_world.settings.outbox_dir / "another.outbox"
    sqlite3.connect(half_made).close()
    half_made.touch()

    sqlite_world.chat()
    sqlite_world.settle()

    assert len(sqlite_world.events()) == 1
    assert sqlite_world.balance().held.picos == 0
