"""What is kept of files and batches, and what is refused about them."""

from typing import Any, Final, Literal

import msgspec

from steelyard.errors import Failure, Refusal
from steelyard.gateway.refusals import InvalidRequest

Purpose = Literal["batch", "batch_output"]
Status = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
OVER: Final[frozenset[Status]] = frozenset({"failed", "completed", "expired", "cancelled"})


class FileNotFound(Refusal):
    """This key has no such file here."""

    code = "file_not_found"


class BatchNotFound(Refusal):
    """This key has no such batch here."""

    code = "batch_not_found"


class BatchOver(Refusal):
    """The batch has ended already."""

    code = "batch_over"


class FileInUse(Refusal):
    """A batch reads from this file. Cancel the batch, or wait for its end."""

    code = "file_in_use"


class BatchInvalid(InvalidRequest):
    """The batch cannot be begun."""

    code = "batch_invalid"


class BatchesUnavailable(Failure):
    """Files and batches cannot be read or written now."""

    code = "batches_unavailable"


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of one key; moments are seconds since 1970."""

    id: str
    key_id: str
    filename: str
    purpose: Purpose
    size: int
    created_at: int

    def as_document(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.size,
            "created_at": self.created_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
        }


class LineError(msgspec.Struct, frozen=True):
    """What is wrong with a line of an input file; lines are counted from 1."""

    code: str
    message: str
    line: int


class StoredBatch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch and how far it is. `life` counts how often its work was taken up."""

    id: str
    key_id: str
    owner: str
    endpoint: str
    input_file_id: str
    output_file_id: str
    error_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    status: Status = "validating"
    life: int = 0
    total: int = 0
    completed: int = 0
    failed: int = 0
    errors: tuple[LineError, ...] = ()
    metadata: dict[str, str] | None = None
    moments: dict[str, int] = {}

    @property
    def is_over(self) -> bool:
        return self.status in OVER

    def as_document(self) -> dict[str, Any]:
        """The batch in OpenAI's shape."""
        stages = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling")
        moments = {f"{stage}_at": self.moments.get(stage) for stage in (*stages, "cancelled")}
        errors = [{"code": e.code, "message": e.message, "line": e.line} for e in self.errors]
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": {"object": "list", "data": errors} if errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_file_id if self.is_over and self.completed else None,
            "error_file_id": self.error_file_id if self.is_over and self.failed else None,
            "created_at": self.created_at,
            **moments,
            "expires_at": self.expires_at,
            "request_counts": {
                "total": self.total,
                "completed": self.completed,
                "failed": self.failed,
            },
            "metadata": self.metadata,
        }
