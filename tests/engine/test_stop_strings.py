"""A stop string ends the text before itself, and no part of it is ever shown."""

from hypothesis import given
from hypothesis import strategies as st

from steelyard.engine.stop_strings import StopStrings

SMALL = st.text("ab", max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4)


@given(pieces=st.lists(SMALL, max_size=8), stops=STOPS)
def test_any_split_shows_what_comes_before_the_first_stop(
    pieces: list[str], stops: list[str]
) -> None:
    text = "".join(pieces)
    ends = [text.find(stop) for stop in stops if stop in text]

    shown, stopped = feed(pieces, stops)

    if stopped:
        assert not any(stop in shown for stop in stops)
        assert any(text.startswith(shown + stop) for stop in stops)
    else:
        assert not ends
        assert shown == text


def test_a_beginning_that_came_to_nothing_is_shown_after_all() -> None:
    stops = StopStrings(("</end>",))

    pieces = [stops.add("one </e")[0], stops.add("lse")[0], stops.flush()]

    assert pieces == ["one ", "</else", ""]


def feed(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    watcher, shown = StopStrings(tuple(stops)), ""
    for piece in pieces:
        text, stopped = watcher.add(piece)
        shown += text
        if stopped:
            return shown, True
    return shown + watcher.flush(), False
