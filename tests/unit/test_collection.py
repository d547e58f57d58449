"""The garbage collector: what it is kept from, and what it still finds."""

import gc
import weakref
from collections.abc import Generator

import pytest

from steelyard.collection import collect_seldom


class Circle:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def restored() -> Generator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


@pytest.mark.usefixtures("restored")
def test_only_what_was_made_before_is_never_looked_at_again() -> None:
    before = Circle()

    collect_seldom()

    after = Circle()
    gone = weakref.ref(Circle())
    looked_at = {id(each) for each in gc.get_objects()}
    assert id(after) in looked_at
    assert id(before) not in looked_at
    gc.collect()
    assert gone() is None
