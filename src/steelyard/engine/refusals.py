"""What the engine may answer instead of text, and the HTTP status of each answer."""

from typing import ClassVar, Final

from steelyard.errors import Failure, Refusal, SteelyardError


class EngineRefusal(Refusal):
    """The request was turned down."""

    error_type: ClassVar[str] = "invalid_request_error"

    def __init__(self, message: str = "", *, param: str | None = None, **numbers: int) -> None:
        super().__init__(message)
        self.param = param
        self.numbers = numbers


class InvalidJson(EngineRefusal):
    """The body is not JSON in UTF-8."""

    code = "invalid_json"


class InvalidRequest(EngineRefusal):
    """A field is missing, has the wrong type, or is out of its range."""

    code = "invalid_request"


class UnsupportedParameter(EngineRefusal):
    """The parameter would change the answer, and this engine does not implement it."""

    code = "unsupported_parameter"


class UnsupportedContent(EngineRefusal):
    """A message may hold text only."""

    code = "unsupported_content"


class ContextLengthExceeded(EngineRefusal):
    """The prompt leaves no room for an answer in the model's context."""

    code = "context_length_exceeded"


class PromptOverBound(EngineRefusal):
    """The prompt has more tokens than the caller allowed."""

    code = "prompt_over_bound"


class AudioUnsupported(EngineRefusal):
    """The file is no sound that can be decoded."""

    code = "audio_unsupported"


class AudioTruncated(EngineRefusal):
    """The recording was cut off: its header promises more than there is."""

    code = "audio_truncated"


class AudioOverBound(EngineRefusal):
    """The recording is longer than the caller allowed."""

    code = "audio_over_bound"


class ImageTooLarge(EngineRefusal):
    """The pictures have more pixels than this engine draws."""

    code = "image_too_large"


class ChatTemplateMissing(EngineRefusal):
    """This model has no chat template; use /v1/completions."""

    code = "chat_template_missing"


class FillInUnsupported(EngineRefusal):
    """This model was not trained to fill in between a prompt and a suffix; leave the suffix out."""

    code = "fill_in_unsupported"


class ServedModelNotFound(EngineRefusal):
    """This engine serves another model."""

    code = "model_not_found"


class BodyTooLarge(EngineRefusal):
    """The request body is larger than this engine accepts."""

    code = "body_too_large"


class EngineLoading(EngineRefusal):
    """The model is still loading; try again in a few seconds."""

    code = "engine_loading"
    error_type = "server_error"


class EngineOverloaded(EngineRefusal):
    """The waiting room is full; try again shortly."""

    code = "engine_overloaded"
    error_type = "server_error"


class EngineStopped(EngineRefusal):
    """The engine is stopping and takes no new sequences."""

    code = "engine_stopped"
    error_type = "server_error"


class RequestUnknown(EngineRefusal):
    """The request log holds no request with this id."""

    code = "request_unknown"


class RequestLogOff(EngineRefusal):
    """This engine keeps no request log; start it with --request-log."""

    code = "request_log_off"


class EngineStepFailed(Failure):
    """A step of the engine failed; the sequences in it are lost, others go on."""

    code = "engine_step_failed"


HTTP_STATUS: Final[dict[type[SteelyardError], int]] = {
    InvalidJson: 400,
    InvalidRequest: 400,
    UnsupportedParameter: 400,
    UnsupportedContent: 400,
    ContextLengthExceeded: 400,
    PromptOverBound: 400,
    ChatTemplateMissing: 400,
    FillInUnsupported: 400,
    AudioUnsupported: 400,
    AudioTruncated: 400,
    AudioOverBound: 400,
    ImageTooLarge: 400,
    ServedModelNotFound: 404,
    RequestUnknown: 404,
    RequestLogOff: 404,
    BodyTooLarge: 413,
    EngineStepFailed: 500,
    EngineLoading: 503,
    EngineOverloaded: 503,
    EngineStopped: 503,
}

RETRY_AFTER_S: Final[dict[type[SteelyardError], int]] = {
    EngineLoading: 5,
    EngineOverloaded: 1,
    EngineStopped: 5,
}
