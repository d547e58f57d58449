"""The three kinds of trouble: bugs are assertions, refusals and failures are the trees below.

A refusal is a clear no to a request we understood. A failure is the world letting us down.
Each class names its stable code; a message is written for the person who has to act on it.
"""

import inspect
from typing import ClassVar


class SteelyardError(Exception):
    """Something that has a stable code and a message for people."""

    code: ClassVar[str] = "error"

    def __str__(self) -> str:
        return super().__str__() or inspect.cleandoc(type(self).__doc__ or "")


class Refusal(SteelyardError):
    """The request was turned down."""

    code: ClassVar[str] = "refused"


class Failure(SteelyardError):
    """Something outside of the program failed."""

    code: ClassVar[str] = "failed"
