"""How a moment is written: RFC 3339, UTC, microseconds. Pure; the clock lives elsewhere."""

from datetime import UTC, datetime


def write_timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with microseconds: one spelling, so equal moments have equal bytes."""
    assert moment.tzinfo is not None, f"a naive datetime has no place here: {moment!r}"
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    # Without its offset, which is written as Z.
    return f"{moment.isoformat(timespec='microseconds')[:26]}Z"


def read_timestamp(text: str) -> datetime:
    """Read any RFC 3339 timestamp that names its offset; raises ValueError otherwise."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} does not say its time zone; append 'Z' for UTC")
    return moment.astimezone(UTC)
