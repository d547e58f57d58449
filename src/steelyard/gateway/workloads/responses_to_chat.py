"""Translates a request for a response into one for a chat, for servers without that API."""

from typing import Any, Final

import msgspec

from steelyard.gateway.refusals import InvalidRequest

Document = dict[str, Any]
# Fields that mean the same on both sides.
SHARED: Final = ("stream", "temperature", "top_p", "parallel_tool_calls", "user", "top_logprobs")


def chat_fields(body: bytes) -> Document:
    """The chat that asks for the same; raises InvalidRequest for what has no counterpart."""
    try:
        return _chat_fields(msgspec.json.decode(body))
    except (KeyError, TypeError, AttributeError) as error:
        # The document is the client's: what is missing in it, or of another type, is its mistake.
        raise InvalidRequest(f"a field is missing or has a wrong type: {error}") from error


def _chat_fields(asked: Document) -> Document:
    messages: list[Document] = []
    if asked.get("instructions"):
        messages.append({"role": "system", "content": asked["instructions"]})
    given = asked["input"]
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
    else:
        for item in given:
            _add_item(item, messages)
    fields: Document = {name: asked[name] for name in SHARED if asked.get(name) is not None}
    fields["messages"] = messages
    if asked.get("top_logprobs"):
        fields["logprobs"] = True
    reasoning: Document = asked.get("reasoning") or {}
    effort = reasoning.get("effort")
    if effort:
        fields["reasoning_effort"] = effort
    return fields | _tools(asked) | _response_format(asked)


def _add_item(item: Document, messages: list[Document]) -> None:
    match item.get("type", "message"):
        case "message":
            messages.append({"role": item["role"], "content": _content(item["content"])})
        case "function_call":
            _add_call(item, messages)
        case "function_call_output":
            output = item["output"]
            content = output if isinstance(output, str) else _content(output)
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": content})
        case "reasoning":
            # A chat server keeps no thoughts from one turn to the next.
            pass
        case kind:
            raise _refusal(f"an item of type {kind!r} needs a server that speaks the Responses API")


def _add_call(item: Document, messages: list[Document]) -> None:
    """Calls that were made together belong to one message."""
    function = {"name": item["name"], "arguments": item["arguments"]}
    call = {"id": item["call_id"], "type": "function", "function": function}
    last = messages[-1] if messages else None
    if last is not None and last["role"] == "assistant":
        last.setdefault("tool_calls", []).append(call)
    else:
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})


def _content(content: str | list[Document]) -> str | list[Document]:
    if isinstance(content, str):
        return content
    if all(part["type"] == "output_text" for part in content):
        return "".join(part["text"] for part in content)
    return [_part(part) for part in content]


def _part(part: Document) -> Document:
    match part["type"]:
        case "input_text" | "output_text" | "text":
            return {"type": "text", "text": part["text"]}
        case "input_image" if part.get("image_url"):
            image = {"url": part["image_url"], "detail": part.get("detail") or "auto"}
            return {"type": "image_url", "image_url": image}
        case "input_audio":
            return {"type": "input_audio", "input_audio": part["input_audio"]}
        case "input_file" if part.get("file_data"):
            file = {"filename": part.get("filename") or "file", "file_data": part["file_data"]}
            return {"type": "file", "file": file}
        case kind:
            raise _refusal(f"content of type {kind!r} needs a server that speaks the Responses API")


def _tools(asked: Document) -> Document:
    tools = asked.get("tools")
    if not tools:
        return {}
    fields: Document = {"tools": [_tool(tool) for tool in tools]}
    choice: str | Document | None = asked.get("tool_choice")
    if isinstance(choice, dict):
        if choice.get("type") != "function":
            raise _refusal("this tool_choice needs a server that speaks the Responses API")
        fields["tool_choice"] = {"type": "function", "function": {"name": choice["name"]}}
    elif choice:
        fields["tool_choice"] = choice
    return fields


def _tool(tool: Document) -> Document:
    if tool["type"] != "function":
        raise _refusal(
            f"a tool of type {tool['type']!r} needs a server that speaks the Responses API"
        )
    names = ("name", "description", "parameters", "strict")
    function = {name: tool[name] for name in names if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _response_format(asked: Document) -> Document:
    text: Document = asked.get("text") or {}
    wanted: Document = text.get("format") or {"type": "text"}
    match wanted["type"]:
        case "text":
            return {}
        case "json_schema":
            schema = {name: value for name, value in wanted.items() if name != "type"}
            return {"response_format": {"type": "json_schema", "json_schema": schema}}
        case _:
            return {"response_format": wanted}


def _refusal(message: str) -> InvalidRequest:
    return InvalidRequest(message, parameter="input")
