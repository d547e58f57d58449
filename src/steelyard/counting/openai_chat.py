"""How OpenAI's chat models count messages and tools, by the rule that OpenAI documents.

https://github.com/openai/openai-cookbook/blob/main/examples/How_to_count_tokens_with_tiktoken.ipynb
OpenAI calls the rule for tools an estimate, and so do we.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from steelyard.errors import Refusal
from steelyard.metering.tokenizer import Tokenizer

TOKENS_PER_MESSAGE: Final = 3
TOKENS_PER_NAME: Final = 1
# Every answer is begun with <|start|>assistant<|message|>.
TOKENS_OF_ANSWER_START: Final = 3
PROPERTIES_START: Final = 3
PROPERTY_KEY: Final = 3
ENUM_START: Final = -3
ENUM_ITEM: Final = 3
TOOLS_END: Final = 12
# Each function begins with so many: fewer in the newer encoding.
FUNCTION_START: Final[Mapping[str, int]] = {"o200k": 7, "cl100k": 10}


class ToolsNotCountable(Refusal):
    """The tools are not of OpenAI's shape."""

    code = "tools_not_countable"


class _Property(msgspec.Struct):
    type: Any = None
    description: str | None = None
    enum: list[Any] | None = None


class _Parameters(msgspec.Struct):
    properties: dict[str, _Property] = {}


class _Function(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: _Parameters | None = None


class _Tool(msgspec.Struct):
    function: _Function | None = None


def count_openai_messages(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> int:
    """Tokens of a conversation of text."""
    total = TOKENS_OF_ANSWER_START
    for message in messages:
        total += TOKENS_PER_MESSAGE
        total += sum(
            tokenizer.count(value)
            for name, value in message.items()
            if name in {"role", "content", "name"} and isinstance(value, str)
        )
        total += TOKENS_PER_NAME if message.get("name") else 0
    return total


def count_openai_tools(tokenizer: Tokenizer, tools: Sequence[Any], *, encoding: str) -> int:
    """Tokens that tool definitions add, about; raises ToolsNotCountable."""
    try:
        read = msgspec.convert(tools, list[_Tool])
    except msgspec.ValidationError as error:
        raise ToolsNotCountable(f"the tools are not of OpenAI's shape: {error}") from error
    functions = [tool.function for tool in read if tool.function is not None]
    if not functions:
        return 0
    start = FUNCTION_START.get(encoding, FUNCTION_START["o200k"])
    return TOOLS_END + sum(start + _count_function(tokenizer, f) for f in functions)


def _count_function(tokenizer: Tokenizer, function: _Function) -> int:
    description = (function.description or "").removesuffix(".")
    total = tokenizer.count(f"{function.name}:{description}")
    properties = function.parameters.properties if function.parameters else {}
    if not properties:
        return total
    total += PROPERTIES_START
    for name, stated in properties.items():
        total += PROPERTY_KEY + _count_property(tokenizer, name, stated)
    return total


def _count_property(tokenizer: Tokenizer, name: str, stated: _Property) -> int:
    total = 0
    if stated.enum is not None:
        total += ENUM_START
        total += sum(ENUM_ITEM + tokenizer.count(str(item)) for item in stated.enum)
    description = (stated.description or "").removesuffix(".")
    return total + tokenizer.count(f"{name}:{stated.type}:{description}")
