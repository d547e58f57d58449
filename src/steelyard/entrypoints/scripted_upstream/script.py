"""A script for an upstream that has no model: answers, delays, faults and quirks, as YAML."""

from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec
import yaml

from steelyard.errors import Refusal
from steelyard.gateway.upstreams.habits import CHAT, COMPLETIONS, IMAGES, TRANSCRIPTIONS
from steelyard.gateway.upstreams.scripted_lists import LIST_PATHS

UsageScript = Literal["end", "every_chunk", "missing", "zero"]


class ScriptMalformed(Refusal):
    """The script cannot be read."""

    code = "script_malformed"


class When(msgspec.Struct, forbid_unknown_fields=True):
    """Which requests an answer is for; what is left out matches everything."""

    path: str | None = None
    model: str | None = None
    contains: str | None = None


class ScriptedCall(msgspec.Struct, forbid_unknown_fields=True):
    """A tool that the answer calls."""

    name: str
    arguments: dict[str, Any] = {}


class ScriptedAnswer(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What one request gets; one word is one token. `docs/reference/scripted-upstream.md`."""

    when: When = msgspec.field(default_factory=When)
    times: int | None = None
    status: int = 200
    retry_after: str | None = None
    error: str = "scripted refusal"
    words: list[str] = msgspec.field(default_factory=lambda: ["hello", " world"])
    thought: list[str] = []
    calls: list[ScriptedCall] = []
    finish_reason: str | None = None
    prompt_tokens: int = 7
    seconds: float = 3.0
    steps: int = 4
    usage: UsageScript | dict[str, Any] = "end"
    delay_s: float = 0.0
    word_delay_s: float = 0.0
    breaks_after_words: int | None = None
    errors_after_words: int | None = None
    hangs_after_words: int | None = None
    body: str | None = None
    content_type: str = "text/event-stream"
    line_end: Literal["\n", "\r\n", "\r"] = "\n"
    has_comments: bool = False
    has_done: bool = True
    write_bytes: int | None = None

    @property
    def output_tokens(self) -> int:
        return len(self.thought) + len(self.words) + len(self.calls)


class Script(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The models that are listed, and the answers, of which the first that fits is played."""

    models: list[str] = msgspec.field(default_factory=lambda: ["scripted"])
    context_tokens_max: int = 8192
    has_facts: bool = True
    paths: list[str] = msgspec.field(
        default_factory=lambda: [CHAT, COMPLETIONS, TRANSCRIPTIONS, IMAGES, *sorted(LIST_PATHS)]
    )
    answers: list[ScriptedAnswer] = []


NO_ANSWER: Final = ScriptedAnswer()


def read_script(text: str) -> Script:
    """Read a script; raises ScriptMalformed with the place of the mistake."""
    try:
        return msgspec.convert(yaml.safe_load(text) or {}, Script)
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise ScriptMalformed(f"the script cannot be read: {error}") from error


@dataclass(slots=True)
class ScriptPlayer:
    """Plays a script: answers that are limited in number are used up."""

    script: Script
    _played: dict[int, int] = field(default_factory=dict[int, int])

    def answer_for(self, *, path: str, model: str, body: str) -> ScriptedAnswer:
        """The first answer that fits and is not used up, or a plain one."""
        for position, answer in enumerate(self.script.answers):
            when, played = answer.when, self._played.get(position, 0)
            if answer.times is not None and played >= answer.times:
                continue
            fits = when.path in {None, path} and when.model in {None, model}
            if fits and (when.contains is None or when.contains in body):
                self._played[position] = played + 1
                return answer
        return NO_ANSWER
