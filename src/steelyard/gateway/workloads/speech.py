"""Speech: POST /v1/audio/speech (https://platform.openai.com/docs/api-reference/audio/createSpeech).

The answer is sound, which says nothing of what it took: the characters that were to be spoken are
the count.
"""

from typing import Any, Final

import msgspec

from steelyard.gateway.refusals import EmptyPrompt, InvalidRequest
from steelyard.gateway.upstreams.base import UpstreamFailed
from steelyard.gateway.upstreams.habits import SPEECH
from steelyard.gateway.workloads.answer import PricedUsage, WholeAnswer, report_usage
from steelyard.gateway.workloads.asked import Asked, Way, digest_request, read_fields, read_typed
from steelyard.metering.answer_meter import AnswerMeter
from steelyard.metering.token_bound import PromptSize
from steelyard.metering.usage import OUTPUT_AUDIO_CHARACTERS

CHARACTERS_MAX: Final = 4096
FORMAT: Final = "mp3"
CONTENT_TYPES: Final = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}


class SpeechFields(msgspec.Struct):
    """The fields that the gateway looks at."""

    input: str
    model: str | None = None
    response_format: str | None = None
    stream_format: str | None = None


_decoder = msgspec.json.Decoder(SpeechFields)


def parse_speech(body: bytes) -> Asked:
    """Read a request for speech; raises InvalidRequest or one of its kinds."""
    given = read_fields(body)
    typed = read_typed(body, _decoder)
    characters = len(typed.input)
    if not typed.input.strip():
        raise EmptyPrompt("input must have some text", parameter="input")
    if characters > CHARACTERS_MAX:
        message = f"input has {characters} characters; at most {CHARACTERS_MAX} are spoken"
        raise InvalidRequest(message, parameter="input")
    wanted = typed.response_format or FORMAT
    if wanted not in CONTENT_TYPES:
        message = f"response_format must be one of {', '.join(CONTENT_TYPES)}"
        raise InvalidRequest(message, parameter="response_format")
    if typed.stream_format not in {None, "audio"}:
        raise InvalidRequest("speech comes as audio", parameter="stream_format")
    fields: dict[str, Any] = {**given, "response_format": wanted}
    way = Way(
        path=SPEECH,
        fields=lambda: fields,
        open_answer=lambda: SpeechAnswer(characters),
        answer_type=CONTENT_TYPES[wanted],
        is_bounded_by_tokens=False,
    )
    return Asked(
        endpoint=SPEECH,
        model=typed.model,
        size=PromptSize(0, 0, 0),
        output_tokens_max=None,
        choice_count=0,
        is_streamed=False,
        wants_usage=True,
        request_digest=digest_request(body),
        ways=(way,),
        counts_max={OUTPUT_AUDIO_CHARACTERS: characters},
    )


class SpeechAnswer(WholeAnswer):
    """Implements Answer for sound that comes whole."""

    def __init__(self, characters: int) -> None:
        self._characters = characters
        self._sound = b""

    def read_whole(self, body: bytes, meter: AnswerMeter) -> bytes:
        if not body or body.startswith(b"{"):
            raise UpstreamFailed("the model's server sent no sound")
        self._sound = body
        block = {"type": "spoken", "characters": self._characters}
        report_usage(msgspec.Raw(msgspec.json.encode(block)), meter)
        meter.is_complete = True
        return body

    def write_whole(self, priced: PricedUsage) -> bytes:
        del priced
        return self._sound
