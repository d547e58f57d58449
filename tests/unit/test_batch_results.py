"""The files of a batch: what is done stays done, what was torn is asked again."""

import json
from collections.abc import Set
from pathlib import Path

import msgspec

from steelyard.gateway.batches.batch_lines import check_lines
from steelyard.gateway.batches.batch_results import BatchResults, JournalEntry
from steelyard.ids import derived_id, new_id


def _open(folder: Path) -> BatchResults:
    return BatchResults("batch_x", output=folder / "out", errors=folder / "err")


def _note(results: BatchResults, line: int, event_id: str) -> None:
    body = msgspec.Raw(b'{"choices": [], "usage": {"prompt_tokens": 1}}')
    results.note(JournalEntry(line, f"name-{line}", event_id, body))


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
    asked: list[Set[str]] = []

    def charged(event_ids: Set[str]) -> Set[str]:
        asked.append(set(event_ids))
        return {"charged"}

    results.resolve(charged)

    assert asked == [{"charged", "not charged"}]
    assert [results.is_done(line) for line in (1, 2, 3)] == [True, False, True]
    told = json.loads((tmp_path / "out").read_text().splitlines()[-1])
    assert told["response"]["body"]["usage"]["event_id"] == "charged"
    assert (tmp_path / "batch_x.journal").read_bytes() == b""
    results.close(is_over=True)


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
