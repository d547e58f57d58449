"""Counts an attempt again with the model's own tokenizer."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from steelyard.counting.model_counter import Counted, ModelCounter
from steelyard.errors import SteelyardError
from steelyard.metering.answer_text import AnswerUnreadable, ChoiceText, read_answer
from steelyard.metering.recount import RecountJob, RecountRecord
from steelyard.timestamp import write_timestamp


class _Prompt(msgspec.Struct):
    """What a model is asked with. Fields of which nobody documents how they count are named, so
    that they are seen."""

    messages: list[dict[str, Any]] | None = None
    prompt: str | list[str | int] | None = None
    suffix: str | None = None
    tools: list[Any] | None = None
    stop: Any = None
    functions: Any = None
    response_format: Any = None


def recount(job: RecountJob, counter: ModelCounter, *, at: datetime) -> RecountRecord:
    """The record of a second count; what cannot be counted says why, in a word."""
    served = counter.registered.served_sha256
    if job.served_sha256 and served and job.served_sha256 != served:
        return uncountable(job, "other_tokenizer_served", at=at)
    try:
        prompt = msgspec.json.decode(job.prompt, type=_Prompt)
        asked = _count_prompt(prompt, counter)
        answered = _count_answer(job, prompt, counter)
    except SteelyardError as error:
        # The code and not the message, which might quote what nobody stores.
        return uncountable(job, error.code, at=at)
    except (msgspec.DecodeError, AnswerUnreadable):
        return uncountable(job, "attempt_unreadable", at=at)
    if asked is None and answered is None:
        return uncountable(job, "no_rule", at=at)
    return RecountRecord(
        id=job.id,
        upstream=job.upstream,
        model=job.model,
        outcome="recounted",
        recounted_at=write_timestamp(at),
        reported_input=job.reported_input if asked else None,
        recounted_input=asked.tokens if asked else None,
        reported_output=job.reported_output if answered is not None else None,
        recounted_output=answered,
        source=asked.source if asked else "tokenizer",
        pin_sha256=counter.registered.pin.sha256,
    )


def uncountable(job: RecountJob, reason: str, *, at: datetime) -> RecountRecord:
    """The record of an attempt of which there is no second count."""
    return RecountRecord(
        id=job.id,
        upstream=job.upstream,
        model=job.model,
        outcome="uncountable",
        recounted_at=write_timestamp(at),
        reason=reason,
    )


def _count_prompt(prompt: _Prompt, counter: ModelCounter) -> Counted | None:
    if prompt.functions or prompt.response_format not in (None, {"type": "text"}):
        return None
    if prompt.suffix:
        # Where the marks around it stand is the model's own business.
        return None
    if prompt.messages is not None:
        return counter.count_messages(prompt.messages, tools=prompt.tools)
    texts = _single(prompt.prompt)
    return counter.count_prompt(texts) if texts is not None else None


def _count_answer(job: RecountJob, prompt: _Prompt, counter: ModelCounter) -> int | None:
    choices = read_answer(job.answer, is_streamed=job.is_streamed)
    # What a stop string cut off was produced and is not in the text; neither is a call of a tool.
    if prompt.stop or not choices or not all(choice.is_plain for choice in choices):
        return None
    return sum(_count_choice(choice, counter) for choice in choices)


def _count_choice(choice: ChoiceText, counter: ModelCounter) -> int:
    return counter.count_answer(choice.text, is_ended=choice.finish_reason == "stop")


def _single(prompt: str | list[str | int] | None) -> str | Sequence[int] | None:
    """One prompt: a text, a list of one text, or token ids."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str):
        return prompt[0] if len(prompt) == 1 else None
    return (
        [token for token in prompt if isinstance(token, int)]
        if isinstance(prompt, list)
        else prompt
    )
