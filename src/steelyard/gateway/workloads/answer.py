"""An answer on its way from an upstream to a client: read, metered, priced, and written again."""

from collections.abc import Sequence
from typing import Any, NoReturn, Protocol, TypeVar

import msgspec

from steelyard.gateway.upstreams.base import UpstreamFailed
from steelyard.metering.answer_meter import AnswerMeter
from steelyard.metering.upstream_usage import read_upstream_usage
from steelyard.metering.usage import Usage
from steelyard.money import Money, write_decimal

Shape = TypeVar("Shape")

_document_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


class PricedUsage(msgspec.Struct, frozen=True):
    """What an answer used, what that costs, and the event that says so."""

    usage: Usage
    total: Money
    event_id: str
    saved: Money | None = None

    def price_fields(self) -> dict[str, str]:
        """What we add to the usage block of any surface."""
        fields = {
            "cost": write_decimal(self.total.picos),
            "currency": self.total.currency,
            "event_id": self.event_id,
        }
        if self.saved is not None:
            fields["saved"] = write_decimal(self.saved.picos)
        return fields


class Answer(Protocol):
    """One answer; it knows the upstream's protocol and the client's.

    What it reads it tells the meter. The end of a stream is kept back until it has a price.
    """

    def read_whole(self, body: bytes, meter: AnswerMeter) -> bytes:
        """Take in a whole answer; returns what of it the client will be handed."""
        ...

    def write_whole(self, priced: PricedUsage) -> bytes:
        """The body for the client."""
        ...

    def read_event(self, payload: bytes, meter: AnswerMeter) -> Sequence[bytes]:
        """Take in an event of a stream; returns the events that may go to the client now."""
        ...

    def end_of_stream(self, meter: AnswerMeter) -> None:
        """The upstream closed the stream; completes the meter if the answer is whole all the
        same."""
        ...

    def write_end(self, priced: PricedUsage, *, wants_usage: bool) -> Sequence[bytes]:
        """The events that end the stream."""
        ...


class WholeAnswer:
    """What an Answer has of streams where it always comes whole: nothing. No request for one is
    taken, so nobody asks."""

    def read_event(self, payload: bytes, meter: AnswerMeter) -> NoReturn:
        raise NotImplementedError("this answer is not streamed")

    def end_of_stream(self, meter: AnswerMeter) -> NoReturn:
        raise NotImplementedError("this answer is not streamed")

    def write_end(self, priced: PricedUsage, *, wants_usage: bool) -> NoReturn:
        raise NotImplementedError("this answer is not streamed")


def read_document(payload: bytes | msgspec.Raw) -> dict[str, msgspec.Raw]:
    """The fields of what an upstream sent, undecoded; raises UpstreamFailed."""
    try:
        return _document_decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UpstreamFailed("the model's server sent something that is not JSON") from error


def read_as(decoder: msgspec.json.Decoder[Shape], raw: bytes | msgspec.Raw) -> Shape:
    """What we look at in what an upstream sent; raises UpstreamFailed where it has another shape."""
    try:
        return decoder.decode(raw)
    except msgspec.DecodeError as error:
        raise UpstreamFailed("the model's server sent something that we cannot read") from error


def refuse_error(document: dict[str, msgspec.Raw]) -> None:
    """Raise UpstreamFailed for an error that came under the status of a good answer."""
    if bytes(document.get("error", b"null")) != b"null":
        raise UpstreamFailed("the model's server broke off in the middle of the answer")


def report_usage(raw: msgspec.Raw | None, meter: AnswerMeter) -> bool:
    """Tell the meter what the upstream reports; False where it reports nothing."""
    usage = read_upstream_usage(raw) if raw is not None else None
    if usage is None:
        return False
    assert raw is not None, "what was read was there"
    meter.report(usage, raw=bytes(raw))
    return True


def openai_usage(raw: msgspec.Raw | None, priced: PricedUsage) -> dict[str, Any]:
    """The upstream's usage block, or our counts in its shape, with the price on it."""
    block: dict[str, Any] | None = msgspec.json.decode(raw) if raw else None
    if not block:
        usage = priced.usage
        block = {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.input_tokens + usage.output_tokens,
        }
    return {**block, **priced.price_fields()}
