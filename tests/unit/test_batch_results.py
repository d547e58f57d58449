"""The files of a batch: what is done stays done, what was torn is asked again."""

import json
import threading
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from steelyard.eventlog.disk import LocalFile
from steelyard.gateway.batches import batch_results
from steelyard.gateway.batches.batch_lines import OpenLines, check_lines
from steelyard.gateway.batches.batch_results import BatchResults, JournalEntry
from steelyard.gateway.batches.records import BatchesUnavailable
from steelyard.ids import derived_id, new_id


def _open(folder: Path, **options: Any) -> BatchResults:
    return BatchResults("batch_x", output=folder / "out", errors=folder / "err", **options)


def _note(results: BatchResults, line: int, event_id: str) -> None:
    body = msgspec.Raw(b'{"choices": [], "usage": {"prompt_tokens": 1}}')
    anyio.run(results.note, JournalEntry(line, f"name-{line}", event_id, body))


def test_lines_with_a_result_are_done_in_the_next_life(tmp_path: Path) -> None:
    results = _open(tmp_path)
    results.answered(3, "three", request_id="r", body=msgspec.Raw(b"{}"))
    results.refused(90_001, "many", response=None, error={"code": "c", "message": "m"})
    results.close(is_over=False)

    again = _open(tmp_path)

    assert [again.is_done(line) for line in (2, 3, 4, 90_001)] == [False, True, False, True]
    assert (again.completed, again.failed) == (1, 1)
    again.close(is_over=True)


def test_a_torn_result_is_cut_off_and_its_line_is_open(tmp_path: Path) -> None:
    results = _open(tmp_path)
    for line in (1, 2):
        results.answered(line, str(line), request_id="r", body=msgspec.Raw(b"{}"))
    results.close(is_over=False)
    out = tmp_path / "out"
    out.write_bytes(out.read_bytes()[:-5])

    again = _open(tmp_path)

    assert [again.is_done(1), again.is_done(2)] == [True, False]
    assert len(out.read_bytes().splitlines()) == 1
    again.close(is_over=True)


def test_only_what_was_charged_is_finished_from_the_journal(tmp_path: Path) -> None:
    results = _open(tmp_path)
    _note(results, 1, "charged")
    _note(results, 2, "not charged")
    _note(results, 3, "told")
    results.answered(3, "three", request_id="r", body=msgspec.Raw(b"{}"))
    anyio.run(results.wait)
    asked: list[Set[str]] = []

    def amounts(event_ids: Set[str]) -> Mapping[str, str]:
        asked.append(set(event_ids))
        return {"charged": "0.5"}

    results.resolve(amounts, currency="EUR")

    assert asked == [{"charged", "not charged"}]
    assert [results.is_done(line) for line in (1, 2, 3)] == [True, False, True]
    told = json.loads((tmp_path / "out").read_text().splitlines()[-1])
    assert told["response"]["body"]["usage"] == {
        "prompt_tokens": 1,
        "cost": "0.5",
        "currency": "EUR",
        "event_id": "charged",
    }
    assert (tmp_path / "batch_x.journal").read_bytes() == b""


class StubbornFile(LocalFile):
    """Implements SegmentFile on a disk that is full while `is_full` is set; it takes a few bytes."""

    is_full = threading.Event()

    def append(self, content: memoryview) -> None:
        if self.is_full.is_set():
            super().append(content[:3])
            raise OSError(28, "No space left on device")
        super().append(content)


def _open_stubborn(path: Path) -> StubbornFile:
    return StubbornFile(path, is_new=False)


def test_results_wait_for_a_full_disk_and_are_whole_afterwards(tmp_path: Path) -> None:
    results = _open(tmp_path, open_file=_open_stubborn)
    StubbornFile.is_full.set()

    before: list[int] = []

    async def tell() -> None:
        results.answered(1, "one", request_id="r", body=msgspec.Raw(b"{}"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(results.wait)
            await anyio.sleep(0.5)
            before.append(results.completed)
            StubbornFile.is_full.clear()

    anyio.run(tell)
    results.close(is_over=False)

    assert (before, results.completed) == ([0], 1)
    [told] = (tmp_path / "out").read_bytes().splitlines()
    assert json.loads(told)["custom_id"] == "one"


def test_an_answer_that_cannot_be_noted_in_time_is_never_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_results, "NOTE_S", 0.3)
    results = _open(tmp_path, open_file=_open_stubborn)
    StubbornFile.is_full.set()

    with pytest.raises(BatchesUnavailable):
        _note(results, 1, "refused")
    StubbornFile.is_full.clear()
    _note(results, 2, "noted")
    results.close(is_over=False)

    [noted] = (tmp_path / "batch_x.journal").read_bytes().splitlines()
    assert json.loads(noted)["event_id"] == "noted"


def test_what_a_full_disk_does_not_take_before_the_end_leaves_no_torn_line(tmp_path: Path) -> None:
    results = _open(tmp_path, open_file=_open_stubborn)
    results.answered(1, "one", request_id="r", body=msgspec.Raw(b"{}"))
    anyio.run(results.wait)
    StubbornFile.is_full.set()
    results.answered(2, "two", request_id="r", body=msgspec.Raw(b"{}"))

    results.close(is_over=False)
    StubbornFile.is_full.clear()

    assert results.completed == 1
    assert (tmp_path / "out").read_bytes().endswith(b"}\n")
    assert _open(tmp_path).completed == 1


def test_lines_that_are_done_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_text("".join(f"{{{number}}}\n" for number in range(1, 301)))
    lines = OpenLines(path, is_done=lambda number: number % 3 != 0)

    async def take_all() -> list[int]:
        taken: list[int] = []

        async def take() -> None:
            while (found := await lines.take()) is not None:
                taken.append(found[0])

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(take)
        return taken

    assert sorted(anyio.run(take_all)) == list(range(3, 301, 3))


def test_a_batch_takes_100_000_lines_and_not_one_more(tmp_path: Path) -> None:
    line = '{{"custom_id":"{}","method":"POST","url":"/v1/embeddings","body":{{}}}}\n'
    path = tmp_path / "in"
    path.write_text("".join(line.format(number) for number in range(100_000)))
    fits = check_lines(path, endpoint="/v1/embeddings")
    with path.open("a") as file:
        file.write(line.format("one more"))

    count, errors = check_lines(path, endpoint="/v1/embeddings")

    assert fits == (100_000, [])
    assert (count, errors[0].code) == (100_001, "too_many_lines")


def test_attempts_of_a_line_have_ids_that_are_always_the_same() -> None:
    batch = new_id()

    ids = {derived_id(f"{line}/1/0/1", after=batch) for line in range(1_000)}

    assert len(ids) == 1_000
    assert derived_id("7/1/0/1", after=batch) in ids
    assert {one[14] for one in ids} == {"8"}
    assert {one[:13] for one in ids} == {batch[:13]}
