"""What the meter knows of an answer that it does not keep."""

import tracemalloc
from datetime import UTC, datetime
from hashlib import sha256

import pytest

from steelyard.metering.answer_meter import AnswerMeter
from steelyard.metering.usage import OUTPUT_TEXT, Usage

AT = datetime(2026, 1, 1, tzinfo=UTC)
PIECES = [b'{"n":%d}' % number for number in range(7)]


@pytest.mark.parametrize("is_kept", [False, True])
@pytest.mark.parametrize("together", [1, 3, 7])
def test_size_and_digest_are_those_of_all_that_was_handed_over(
    is_kept: bool, together: int
) -> None:
    meter = AnswerMeter(is_kept=is_kept)

    for start in range(0, len(PIECES), together):
        meter.deliver(PIECES[start : start + together], reported=None, at=AT)

    assert meter.delivered_bytes == sum(map(len, PIECES))
    assert meter.output_digest() == sha256(b"".join(PIECES)).hexdigest()


def test_an_answer_that_is_counted_again_is_there_a_piece_a_line() -> None:
    meter = AnswerMeter(is_kept=True)

    meter.deliver(PIECES[:2], reported=None, at=AT)
    meter.deliver(PIECES[2:], reported=None, at=AT)

    assert meter.delivered_lines().split(b"\n") == PIECES


def test_an_answer_that_is_not_counted_again_takes_no_memory() -> None:
    meter = AnswerMeter()
    usage = Usage({OUTPUT_TEXT: 1})
    tracemalloc.start()

    for number in range(1_000):
        meter.deliver([b"%01000d" % number], reported=usage, at=AT)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert meter.delivered_bytes == 1_000_000
    assert taken < 50_000


def test_what_comes_after_the_client_left_was_not_handed_over() -> None:
    meter = AnswerMeter()
    meter.deliver(PIECES[:1], reported=None, at=AT)
    meter.is_drained = True

    meter.deliver(PIECES[1:], reported=Usage({OUTPUT_TEXT: 9}), at=AT)

    assert meter.delivered_bytes == len(PIECES[0])
    assert meter.output_digest() == sha256(PIECES[0]).hexdigest()
    assert not meter.delivered.has_output
