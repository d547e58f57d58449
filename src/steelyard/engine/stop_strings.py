"""Ends a text before the first of its stop strings, and never shows a part of one."""


class StopStrings:
    """Passes text on, holding back only what may turn out to begin a stop string."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        assert all(stops), "an empty stop string would match everywhere"
        self._stops = stops
        self._held = ""

    def add(self, piece: str) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string ended it."""
        if not self._stops:
            return piece, False
        text = self._held + piece
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        shown = len(text) - self._length_to_hold(text)
        self._held = text[shown:]
        return text[:shown], False

    def flush(self) -> str:
        """What was held back: the text has ended without completing a stop string."""
        held, self._held = self._held, ""
        return held

    def _length_to_hold(self, text: str) -> int:
        longest = min(max(map(len, self._stops)) - 1, len(text))
        for length in range(longest, 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
