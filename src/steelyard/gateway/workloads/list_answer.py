"""Answers that are a list with an entry for each thing asked: embeddings, classes, ranks.

They come whole. Where things are counted one by one, the answer itself is the count.
"""

from typing import Any

import msgspec

from steelyard.gateway.upstreams.base import UpstreamFailed
from steelyard.gateway.workloads.answer import (
    PricedUsage,
    WholeAnswer,
    read_document,
    refuse_error,
    report_usage,
)
from steelyard.metering.answer_meter import AnswerMeter

_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_usage_decoder = msgspec.json.Decoder(dict[str, Any] | None)


class ListAnswer(WholeAnswer):
    """Implements Answer for a list under the name `field`.

    Where `item_count` is given, the list has as many entries, and they are counted as items.
    """

    def __init__(self, field: str, *, item_count: int | None = None) -> None:
        self._field = field
        self._item_count = item_count
        self._document: dict[str, msgspec.Raw] = {}
        self._usage: msgspec.Raw | None = None

    def read_whole(self, body: bytes, meter: AnswerMeter) -> bytes:
        self._document = read_document(body)
        refuse_error(self._document)
        if self._field not in self._document:
            raise UpstreamFailed(f"the model's server sent an answer without {self._field}")
        self._usage = self._document.get("usage")
        if self._item_count is not None:
            self._count_items()
        report_usage(self._usage, meter)
        meter.is_complete = True
        return bytes(self._document[self._field])

    def write_whole(self, priced: PricedUsage) -> bytes:
        usage: dict[str, Any] | None = msgspec.json.decode(self._usage) if self._usage else None
        count = priced.usage.input_tokens
        block = usage or {"prompt_tokens": count, "total_tokens": count}
        return msgspec.json.encode({**self._document, "usage": {**block, **priced.price_fields()}})

    def _count_items(self) -> None:
        """Put the number of entries into the usage block, which the event keeps."""
        try:
            count = len(_list_decoder.decode(self._document[self._field]))
            block = _usage_decoder.decode(self._usage or b"{}") or dict[str, Any]()
        except msgspec.DecodeError as error:
            raise UpstreamFailed("the model's server sent a list that we cannot read") from error
        if count != self._item_count:
            raise UpstreamFailed(
                f"the model's server answered {count} items of the {self._item_count} asked"
            )
        self._usage = msgspec.Raw(msgspec.json.encode({**block, "items": count}))
