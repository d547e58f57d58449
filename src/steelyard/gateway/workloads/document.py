"""Documents: POST /v1/documents, a form with a file and what is to be done with it."""

from dataclasses import dataclass
from typing import Final

from steelyard.gateway.documents.reading import read_document_text
from steelyard.gateway.documents.tasks import TASKS, Task, own_task
from steelyard.gateway.refusals import InvalidRequest
from steelyard.gateway.workloads.asked import count_utf8_bytes
from steelyard.gateway.workloads.form import read_form

TOKENS_DEFAULT: Final = 256
FIELDS: Final = frozenset({"model", "task", "prompt", "max_tokens", "stream", "dry_run"})
PROMPT_BYTES_MAX: Final = 4_000


@dataclass(frozen=True, slots=True)
class AskedDocument:
    """A document and what is to be done with it; `tokens_max` is of the answer for each part."""

    text: str
    model: str | None
    task_name: str
    task: Task
    tokens_max: int
    is_streamed: bool
    is_estimate: bool


def parse_document(body: bytes, content_type: str | None) -> AskedDocument:
    """Read a document; raises InvalidRequest or one of its kinds."""
    form = read_form(body, content_type)
    for name in form.fields:
        if name not in FIELDS:
            message = f"{name} is not known here; it takes {', '.join(sorted(FIELDS))}"
            raise InvalidRequest(message, parameter=name)
    name, prompt = form.value("task"), form.value("prompt")
    if (name is None) == (prompt is None):
        raise InvalidRequest(f"give a task ({', '.join(TASKS)}) or a prompt", parameter="task")
    if name is not None and name not in TASKS:
        raise InvalidRequest(f"task must be one of {', '.join(TASKS)}", parameter="task")
    if prompt is not None and not (
        0 < count_utf8_bytes(prompt, parameter="prompt") <= PROMPT_BYTES_MAX
    ):
        message = f"a prompt has 1 to {PROMPT_BYTES_MAX} bytes"
        raise InvalidRequest(message, parameter="prompt")
    return AskedDocument(
        text=read_document_text(form.file().content),
        model=form.value("model"),
        task_name=name or "prompt",
        task=TASKS[name] if name is not None else own_task(prompt or ""),
        tokens_max=_read_tokens_max(form.value("max_tokens")),
        is_streamed=form.is_true("stream"),
        is_estimate=form.is_true("dry_run"),
    )


def _read_tokens_max(text: str | None) -> int:
    if text is None:
        return TOKENS_DEFAULT
    if not (text.isascii() and text.isdigit() and 1 <= len(text) <= 6 and int(text)):
        raise InvalidRequest("max_tokens must be at least 1", parameter="max_tokens")
    return int(text)
