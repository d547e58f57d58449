"""What a stage asks: its body, made into a request that looks like any other. A transcription is a
form with a file that the run was given."""

from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import msgspec

from steelyard.gateway.batches.batch_lines import ENDPOINTS
from steelyard.gateway.refusals import InvalidRequest
from steelyard.gateway.upstreams.habits import IMAGES, TRANSCRIPTIONS
from steelyard.gateway.workloads.asked import Asked
from steelyard.gateway.workloads.form import FormFile, FormWriter
from steelyard.gateway.workloads.image import parse_image
from steelyard.gateway.workloads.transcription import parse_transcription

STAGE_ENDPOINTS: Final = (*ENDPOINTS, TRANSCRIPTIONS, IMAGES)
FILE_ENDPOINTS: Final = frozenset({TRANSCRIPTIONS})
# What stages behind it can look into.
FORMATS: Final = frozenset({None, "json", "verbose_json"})


def read_stage_request(
    endpoint: str, body: Mapping[str, Any], file_of: Callable[[str], FormFile]
) -> Asked:
    """The request of a stage; raises what is wrong with it."""
    if endpoint == TRANSCRIPTIONS:
        return _read_transcription(body, file_of)
    parse = parse_image if endpoint == IMAGES else ENDPOINTS[endpoint]
    asked = parse(msgspec.json.encode(body))
    if asked.is_streamed:
        raise InvalidRequest("a stage is not streamed", parameter="stream")
    return asked


def _read_transcription(body: Mapping[str, Any], file_of: Callable[[str], FormFile]) -> Asked:
    given = body.get("file")
    name = cast("dict[str, Any]", given).get("file") if isinstance(given, dict) else None
    if not isinstance(name, str):
        raise InvalidRequest("the file of a stage is an input of kind audio", parameter="file")
    if body.get("response_format") not in FORMATS or body.get("stream"):
        raise InvalidRequest("a stage takes json or verbose_json", parameter="response_format")
    writer = FormWriter.of(file_of(name))
    fields = {field: value for field, value in body.items() if field != "file"}
    return parse_transcription(writer.write(fields), writer.content_type)
