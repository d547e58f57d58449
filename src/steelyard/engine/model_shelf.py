"""Several models under one memory budget: loaded on demand, the one least recently used leaves first.

A model that is in use never leaves. What is known of a model (its card) outlives its weights, so that
callers can bound their prompts for a model that is not in memory.
"""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from steelyard.engine.refusals import EngineOverloaded, ServedModelNotFound

if TYPE_CHECKING:
    from steelyard.engine.engine import Engine, EngineStats

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What may be told of a model that is not in memory."""

    name: str
    max_model_len: int
    facts: dict[str, Any]
    memory_bytes: int


@dataclass(slots=True)
class _Place:
    load: Callable[[EngineStats | None], Engine]
    card: ModelCard | None = None
    engine: Engine | None = None
    # What it counted before it left the memory, so that its counts only grow.
    counts: EngineStats | None = None
    users: int = 0


class ModelShelf:
    """Knows every model that is served here, and which of them are in memory."""

    def __init__(self, *, memory_bytes_max: int | None) -> None:
        self._memory_bytes_max = memory_bytes_max
        self._places: OrderedDict[str, _Place] = OrderedDict()
        self._names: list[str] = []
        # One model is loaded or unloaded at a time; the quick lock guards the places themselves.
        self._loading = threading.Lock()
        self._lock = threading.Lock()

    @property
    def default(self) -> str:
        """The model of a request that names none."""
        return self._names[0]

    @property
    def cards(self) -> list[tuple[ModelCard, bool]]:
        """Each model in the order in which it was given, and whether it is in memory."""
        with self._lock:
            places = [self._places[name] for name in self._names]
            return [(place.card, place.engine is not None) for place in places if place.card]

    @property
    def engines(self) -> list[Engine]:
        """Those in memory."""
        with self._lock:
            return [place.engine for place in self._places.values() if place.engine is not None]

    def put(self, load: Callable[[EngineStats | None], Engine]) -> None:
        """Load a model for the first time and learn what it is; it may have to leave later."""
        place = _Place(load)
        with self._loading:
            engine = load(None)
            name = engine.model.name
            assert name not in self._places, f"two models are called {name!r}"
            place.engine, place.card = engine, _card_of(engine)
            with self._lock:
                self._places[name] = place
                self._names.append(name)
            self._make_room(keep=name)

    def check(self, name: str | None) -> str:
        """The name of a model that is served here; refuses any other."""
        if name is None and self._names:
            return self.default
        if name not in self._names:
            served = ", ".join(map(repr, self._names)) or "none that write"
            raise ServedModelNotFound(
                f"the model {name!r} does not write text here; this engine serves {served}",
                param="model",
            )
        return name

    def hold(self, name: str) -> None:
        """Keep a model from leaving until `let_go`; it may have to be loaded yet."""
        with self._lock:
            self._places[name].users += 1
            self._places.move_to_end(name)

    def let_go(self, name: str) -> None:
        """Undo one `hold`."""
        with self._lock:
            self._places[name].users -= 1
            assert self._places[name].users >= 0, f"{name} was let go more often than held"

    def loaded(self, name: str) -> Engine | None:
        """The engine of a model that is held, if it is in memory."""
        return self._places[name].engine

    def load(self, name: str) -> Engine:
        """Bring a model that is held into memory; takes seconds."""
        place = self._places[name]
        assert place.users > 0, "a model that nobody holds could leave at once"
        with self._loading:
            if place.engine is None:
                self._make_room(keep=name)
                _log.info("engine.model_loading", model=name)
                engine = place.load(place.counts)
                with self._lock:
                    place.engine = engine
            return place.engine

    def stats(self) -> EngineStats:
        """The sums over all models; what left the memory counts as well."""
        from steelyard.engine.engine import sum_stats

        with self._lock:
            places = list(self._places.values())
        found = [p.engine.stats() if p.engine is not None else p.counts for p in places]
        return sum_stats([stats for stats in found if stats is not None])

    def stop(self) -> None:
        """End all of them."""
        for engine in self.engines:
            engine.stop()

    def _make_room(self, *, keep: str) -> None:
        """Unload until the one to keep fits; refuses when all others are busy."""
        while self._memory_bytes_max is not None:
            leaving = self._take_one_out(keep)
            if leaving is None:
                return
            _end(*leaving)

    def _take_one_out(self, keep: str) -> tuple[_Place, Engine] | None:
        assert self._memory_bytes_max is not None
        with self._lock:
            others = [
                (name, place)
                for name, place in self._places.items()
                if place.engine is not None and name != keep
            ]
            held = sum(place.card.memory_bytes for _, place in others if place.card is not None)
            kept = self._places[keep].card
            needed = 0 if kept is None else kept.memory_bytes
            if not others or held + needed <= self._memory_bytes_max:
                return None
            for _, place in others:
                engine = place.engine
                if engine is not None and place.users == 0 and engine.is_idle:
                    # Under the lock, so that nobody begins to use what is leaving.
                    place.engine, place.counts = None, engine.stats()
                    return place, engine
        raise EngineOverloaded("every other model is in use, and there is no memory for one more")


def _end(place: _Place, engine: Engine) -> None:
    engine.stop()
    assert place.card is not None, "only what is known can leave"
    _log.info("engine.model_unloaded", model=place.card.name)
    del engine
    gc.collect()


def _card_of(engine: Engine) -> ModelCard:
    from dataclasses import asdict

    model = engine.model
    facts = asdict(model.facts) | {"dtype": model.dtype, "device": str(model.device)}
    facts |= {"fills_in": model.fill_in_marks is not None}
    return ModelCard(model.name, engine.max_model_len, facts, engine.memory_bytes)
