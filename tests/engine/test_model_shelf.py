"""Models leave the memory in the order of their last use, and never while they are used."""

from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from engine_process import start_engine_process
from tiny_model import copy_tiny_model

from steelyard.engine.engine import EngineStats
from steelyard.engine.model_shelf import ModelShelf
from steelyard.engine.refusals import EngineOverloaded, ServedModelNotFound


@dataclass
class FakeModel:
    name: str
    dtype: str = "float32"
    device: str = "cpu"
    fill_in_marks: None = None

    @property
    def facts(self) -> EngineStats:
        # Any dataclass will do: the shelf only passes facts on.
        return EngineStats()


@dataclass
class FakeEngine:
    """What the shelf sees of an engine."""

    name: str
    memory_bytes: int = 10
    max_model_len: int = 100
    is_idle: bool = True
    is_alive: bool = True
    counts: EngineStats = field(default_factory=EngineStats)

    @property
    def model(self) -> FakeModel:
        return FakeModel(self.name)

    def stats(self) -> EngineStats:
        return self.counts

    def stop(self) -> None:
        self.is_alive = False


def make_shelf(*names: str, memory: int | None) -> tuple[ModelShelf, dict[str, FakeEngine]]:
    shelf, engines = ModelShelf(memory_bytes_max=memory), dict[str, FakeEngine]()

    def put(name: str) -> None:
        def load(counts: EngineStats | None) -> FakeEngine:
            engines[name] = FakeEngine(name, counts=counts or EngineStats(steps=1))
            return engines[name]

        shelf.put(load)  # pyright: ignore[reportArgumentType]

    for name in names:
        put(name)
    return shelf, engines


def use(shelf: ModelShelf, name: str) -> None:
    shelf.hold(name)
    assert shelf.loaded(name) or shelf.load(name)
    shelf.let_go(name)


def in_memory(shelf: ModelShelf) -> list[str]:
    return [card.name for card, is_loaded in shelf.cards if is_loaded]


def test_all_models_are_known_and_only_those_that_fit_are_in_memory() -> None:
    shelf, _ = make_shelf("a", "b", "c", memory=20)

    assert [card.name for card, _ in shelf.cards] == ["a", "b", "c"]
    assert in_memory(shelf) == ["b", "c"]
    assert shelf.default == "a"


def test_the_model_used_longest_ago_leaves_first() -> None:
    shelf, engines = make_shelf("a", "b", "c", memory=20)
    b_before = engines["b"]

    use(shelf, "b")
    use(shelf, "a")

    assert in_memory(shelf) == ["a", "b"]
    assert engines["b"] is b_before
    assert not engines["c"].is_alive


def test_a_model_in_use_never_leaves() -> None:
    shelf, engines = make_shelf("a", "b", memory=10)
    shelf.hold("b")

    shelf.hold("a")
    with pytest.raises(EngineOverloaded):
        shelf.load("a")
    shelf.let_go("b")
    engines["b"].is_idle = False
    with pytest.raises(EngineOverloaded):
        shelf.load("a")
    engines["b"].is_idle = True
    shelf.load("a")

    assert in_memory(shelf) == ["a"]


def test_counts_outlive_the_memory() -> None:
    shelf, engines = make_shelf("a", "b", memory=10)

    before = shelf.stats().steps
    use(shelf, "a")

    assert before == shelf.stats().steps == 2
    assert engines["a"].counts.steps == 1


def test_an_unknown_model_is_refused_with_those_that_are_served() -> None:
    shelf, _ = make_shelf("a", "b", memory=None)

    with pytest.raises(ServedModelNotFound, match="'a', 'b'"):
        shelf.check("c")


@pytest.mark.slow
def test_two_models_take_turns_in_a_memory_for_one(tiny_folder: Path, tmp_path: Path) -> None:
    other = copy_tiny_model(tiny_folder, tmp_path / "other")
    flags = ["--model", str(tiny_folder), "--model", str(other), "--max-batch-tokens", "2048"]

    with start_engine_process(*flags, "--memory-gb", "0.002") as process:
        answers = [ask(process.url, name) for name in ("tiny", "other", "tiny")]
        listed = httpx.get(f"{process.url}/v1/models").json()["data"]
        stats = process.stats()

    assert answers[0] == answers[1] == answers[2]
    assert [(m["id"], m["steelyard"]["loaded"]) for m in listed] == [
        ("tiny", True),
        ("other", False),
    ]
    assert stats["completion_tokens"] == 15


def ask(url: str, model: str) -> str:
    body = {"model": model, "prompt": "def", "max_tokens": 5, "temperature": 0, "ignore_eos": True}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
    return answer.json()["choices"][0]["text"]
