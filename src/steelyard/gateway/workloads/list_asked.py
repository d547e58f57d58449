"""Requests whose answer is a list with an entry for each thing asked: embeddings, classes, ranks.

They are put to an upstream in one way, their own, and come whole; each workload says what is in them.
"""

from collections.abc import Mapping, Sequence

import msgspec

from steelyard.gateway.workloads.asked import Asked, Way, digest_request
from steelyard.gateway.workloads.list_answer import ListAnswer
from steelyard.metering.token_bound import PromptSize


def asked_for_list(
    body: bytes,
    fields: Mapping[str, msgspec.Raw],
    *,
    path: str,
    model: str | None,
    size: PromptSize,
    prompt_fields: Sequence[str],
    answer_field: str,
    item_count: int | None = None,
) -> Asked:
    """The request; with an `item_count`, its answer is a list of so many items, and they are
    counted."""
    return Asked(
        endpoint=path,
        model=model,
        size=size,
        output_tokens_max=None,
        choice_count=0,
        item_count=item_count or 0,
        is_streamed=False,
        wants_usage=True,
        request_digest=digest_request(body),
        ways=(
            Way(
                path=path,
                fields=lambda: fields,
                open_answer=lambda: ListAnswer(answer_field, item_count=item_count),
                prompt_fields=prompt_fields,
                limit_field=None,
                takes_stream_options=False,
            ),
        ),
    )
