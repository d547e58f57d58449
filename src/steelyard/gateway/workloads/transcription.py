"""Transcription: POST /v1/audio/transcriptions
(https://platform.openai.com/docs/api-reference/audio/createTranscription)."""

import math
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from steelyard.gateway.event_stream import write_event
from steelyard.gateway.refusals import AudioTooLong, InvalidRequest
from steelyard.gateway.upstreams.base import UpstreamFailed
from steelyard.gateway.upstreams.habits import TRANSCRIPTIONS
from steelyard.gateway.workloads.answer import (
    PricedUsage,
    read_document,
    refuse_error,
    report_usage,
)
from steelyard.gateway.workloads.asked import Asked, Way, digest_request
from steelyard.gateway.workloads.form import Form, FormWriter, read_form
from steelyard.gateway.workloads.openai_answer import DONE
from steelyard.gateway.workloads.transcript_formats import CONTENT_TYPES, SUBTITLES, Segment
from steelyard.metering.answer_meter import AnswerMeter
from steelyard.metering.audio_length import read_audio_length
from steelyard.metering.token_bound import PromptSize
from steelyard.metering.usage import (
    INPUT_AUDIO_SECONDS,
    OUTPUT_TRANSCRIPT_CHARACTERS,
    OUTPUT_TRANSCRIPT_TOKENS,
)

ENDPOINT: Final = TRANSCRIPTIONS
SECONDS_MAX: Final = 6 * 3600
# Nobody speaks faster; a model that repeats itself without end is cut off here.
TOKENS_PER_SECOND: Final = 15
CHARACTERS_PER_SECOND: Final = 64
# One window of sound has at most so much, however little of it is sound.
TOKENS_LEAST: Final = 448
CHARACTERS_LEAST: Final = 2_048
# What passes to the upstream; `stream` and the format are said by what is asked.
PASSED: Final = frozenset(
    {"language", "prompt", "temperature", "include", "timestamp_granularities", "chunking_strategy"}
)
REFUSED: Final = frozenset({"known_speaker_names", "known_speaker_references"})

_segments_decoder = msgspec.json.Decoder(list[Segment])
_text_decoder = msgspec.json.Decoder(str)


def parse_transcription(body: bytes, content_type: str | None) -> Asked:
    """Read a request for a transcript, and how long its sound is; raises InvalidRequest or one of
    its kinds, AudioUnsupported or AudioTruncated."""
    form = read_form(body, content_type)
    file = form.file()
    wanted = form.value("response_format") or "json"
    if wanted not in CONTENT_TYPES:
        message = f"response_format must be one of {', '.join(CONTENT_TYPES)}"
        raise InvalidRequest(message, parameter="response_format")
    is_streamed = form.is_true("stream")
    if is_streamed and wanted not in {"json", "text"}:
        raise InvalidRequest("a stream is json or text", parameter="response_format")
    seconds = math.ceil(read_audio_length(file.content).seconds)
    if seconds > SECONDS_MAX:
        raise AudioTooLong(f"the recording has {seconds} s; at most {SECONDS_MAX} s are taken")
    counts_max = {
        INPUT_AUDIO_SECONDS: seconds,
        OUTPUT_TRANSCRIPT_TOKENS: TOKENS_PER_SECOND * seconds + TOKENS_LEAST,
        OUTPUT_TRANSCRIPT_CHARACTERS: CHARACTERS_PER_SECOND * seconds + CHARACTERS_LEAST,
    }
    fields = _fields(form, wanted, is_streamed=is_streamed)
    writer = FormWriter.of(file)
    way = Way(
        path=TRANSCRIPTIONS,
        fields=lambda: fields,
        open_answer=lambda: TranscriptionAnswer(wanted, seconds=seconds),
        write=writer.write,
        content_type=writer.content_type,
        answer_type=CONTENT_TYPES[wanted],
        bounds={
            "audio_seconds_max": seconds,
            "transcript_tokens_max": counts_max[OUTPUT_TRANSCRIPT_TOKENS],
            "transcript_characters_max": counts_max[OUTPUT_TRANSCRIPT_CHARACTERS],
        },
        is_bounded_by_tokens=False,
    )
    return Asked(
        endpoint=ENDPOINT,
        model=form.value("model"),
        size=PromptSize(0, 0, 0),
        output_tokens_max=None,
        choice_count=0,
        is_streamed=is_streamed,
        wants_usage=True,
        request_digest=digest_request(body),
        ways=(way,),
        counts_max=counts_max,
    )


def _fields(form: Form, wanted: str, *, is_streamed: bool) -> dict[str, Any]:
    for name in REFUSED & form.fields.keys():
        raise InvalidRequest(f"{name} is not served here", parameter=name)
    fields: dict[str, Any] = {}
    for name in PASSED & form.fields.keys():
        values = form.fields[name]
        fields[name] = values if name in {"include", "timestamp_granularities"} else values[-1]
    # Subtitles are written here, since an upstream that writes them reports no usage.
    is_timed = wanted in {"srt", "vtt", "verbose_json"}
    fields["response_format"] = "verbose_json" if is_timed else "json"
    if is_streamed:
        fields["stream"] = "true"
    return fields


class TranscriptionAnswer:
    """Implements Answer for transcripts."""

    def __init__(self, wanted: str, *, seconds: int) -> None:
        self._wanted = wanted
        self._seconds = seconds
        self._document: dict[str, msgspec.Raw] = {}
        self._usage: dict[str, Any] | None = None
        self._text = ""

    def read_whole(self, body: bytes, meter: AnswerMeter) -> bytes:
        self._document = read_document(body)
        refuse_error(self._document)
        self._text = _read_text(self._document, "text")
        if self._wanted in SUBTITLES:
            self._segments()
        self._report(self._document.pop("usage", None), meter, is_end=True)
        meter.is_complete = True
        return bytes(self._document["text"])

    def write_whole(self, priced: PricedUsage) -> bytes:
        if self._wanted == "text":
            return f"{self._text}\n".encode()
        if self._wanted in SUBTITLES:
            return SUBTITLES[self._wanted](self._segments()).encode()
        return msgspec.json.encode({**self._document, "usage": self._priced(priced)})

    def read_event(self, payload: bytes, meter: AnswerMeter) -> Sequence[bytes]:
        if payload == DONE:
            return ()
        event = read_document(payload)
        refuse_error(event)
        usage = event.pop("usage", None)
        match _read_text(event, "type"):
            case "transcript.text.delta":
                self._text += _read_text(event, "delta")
                self._report(usage, meter, is_end=False)
            case "transcript.text.done":
                self._text = _read_text(event, "text")
                self._report(usage, meter, is_end=True)
                self._document = event
                meter.is_complete = True
                return ()
            case _:
                pass
        return (write_event(msgspec.json.encode(event)),)

    def end_of_stream(self, meter: AnswerMeter) -> None:
        """A stream without its last event is not whole."""

    def write_end(self, priced: PricedUsage, *, wants_usage: bool) -> Sequence[bytes]:
        event = {**self._document, "usage": self._priced(priced)}
        return write_event(msgspec.json.encode(event)), write_event(DONE)

    def _report(self, raw: msgspec.Raw | None, meter: AnswerMeter, *, is_end: bool) -> None:
        """Tell the meter, with the characters that are in the text and the seconds that were sent
        where the upstream says nothing of them."""
        block: dict[str, Any] | None = msgspec.json.decode(raw) if raw is not None else None
        if block is None:
            return
        if block.get("type") == "tokens" and is_end:
            block.setdefault("seconds", self._seconds)
        block.setdefault("transcript_characters", len(self._text))
        self._usage = block
        report_usage(msgspec.Raw(msgspec.json.encode(block)), meter)

    def _priced(self, priced: PricedUsage) -> dict[str, Any]:
        return {**(self._usage or {}), **priced.price_fields()}

    def _segments(self) -> list[Segment]:
        raw = self._document.get("segments")
        try:
            return _segments_decoder.decode(raw) if raw is not None else []
        except msgspec.ValidationError as error:
            raise UpstreamFailed("the model's server sent segments that we cannot read") from error


def _read_text(document: dict[str, msgspec.Raw], name: str) -> str:
    try:
        return _text_decoder.decode(document[name])
    except (KeyError, msgspec.ValidationError) as error:
        raise UpstreamFailed(f"the model's server sent an answer without {name}") from error
