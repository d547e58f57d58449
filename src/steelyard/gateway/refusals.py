"""What the gateway says no to. The table of HTTP statuses is at the edge, in entrypoints."""

from steelyard.errors import Refusal


class InvalidRequest(Refusal):
    """The request is not what this endpoint takes."""

    code = "invalid_request"

    def __init__(self, message: str, *, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter


class InvalidJson(InvalidRequest):
    """The body is not JSON."""

    code = "invalid_json"


class EmptyPrompt(InvalidRequest):
    """The prompt has no text."""

    code = "empty_prompt"


class InvalidForm(InvalidRequest):
    """The body is not the form that it says it is."""

    code = "invalid_form"


class UnsupportedMediaType(InvalidRequest):
    """The body is of a type that this endpoint does not take."""

    code = "unsupported_media_type"


class FileMissing(InvalidRequest):
    """The form has no file in it."""

    code = "file_missing"


class FileEmpty(InvalidRequest):
    """The file is empty."""

    code = "file_empty"


class ImageTooLarge(Refusal):
    """The picture has more pixels than are allowed."""

    code = "image_too_large"


class AudioTooLong(Refusal):
    """The recording is longer than is allowed."""

    code = "audio_too_long"


class ModelNotFound(Refusal):
    """No such model is served here. GET /v1/models lists those that are."""

    code = "model_not_found"


class SurfaceNotServed(Refusal):
    """The model's server does not do this kind of work."""

    code = "surface_not_served"


class PromptTooLong(Refusal):
    """The prompt has more tokens than are allowed."""

    code = "prompt_too_long"


class AnswerTooLong(Refusal):
    """The answer may have more tokens than are allowed."""

    code = "answer_too_long"


class NotEnoughMoney(Refusal):
    """The available balance does not cover the most that this request may cost."""

    code = "insufficient_funds"


class OverBudget(Refusal):
    """A hard budget does not cover the most that this request may use."""

    code = "budget_exceeded"
