"""Renders a model's own chat template, as transformers and vLLM do, and counts what comes out.

A template is a program that somebody else wrote: it runs in Jinja's immutable sandbox.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from steelyard.clock import Clock
from steelyard.counting.libraries import TokenizerLibraryMissing
from steelyard.errors import Refusal

if TYPE_CHECKING:
    import jinja2

Message = Mapping[str, Any]


class TemplateRefuses(Refusal):
    """The model's chat template refuses these messages."""

    code = "template_refuses"


class ChatTemplate:
    """A compiled template; it always asks for an answer."""

    def __init__(self, source: str, *, words: Mapping[str, str], clock: Clock) -> None:
        environment, self._error = _environment(clock.now)
        try:
            self._template = environment.from_string(source)
        except self._error as error:
            raise TemplateRefuses(f"the chat template is no template: {error}") from error
        self._words = dict(words)

    def render(self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None) -> str:
        """The text that the model sees; raises TemplateRefuses."""
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=list(tools) if tools else None,
                documents=None,
                add_generation_prompt=True,
                **self._words,
            )
        except (self._error, TypeError, KeyError, ValueError) as error:
            raise TemplateRefuses(f"the model's chat template refuses: {error}") from error


def _environment(
    now: Callable[[], datetime],
) -> "tuple[jinja2.Environment, type[jinja2.TemplateError]]":
    try:
        import jinja2
        from jinja2 import nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.parser import Parser
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise TokenizerLibraryMissing(
            "jinja2 is not installed: pip install 'steelyard[tokenizers]'"
        ) from error

    class GenerationMark(Extension):
        """Training frameworks mark the assistant's words; for a count the mark is nothing."""

        tags = {"generation"}  # noqa: RUF012 - Jinja reads it from the class

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationMark, loopcontrols]
    )

    def strftime_now(form: str) -> str:
        return now().strftime(form)

    environment.filters["tojson"] = _to_json
    names: dict[str, Any] = {"raise_exception": refuse, "strftime_now": strftime_now}
    environment.globals.update(names)
    return environment, jinja2.TemplateError


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers writes tool definitions: Jinja's own filter would escape for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
