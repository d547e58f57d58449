"""Translates a request for a message into one for a chat, for servers that speak only OpenAI's."""

from typing import Any, Final

import msgspec

from steelyard.gateway.refusals import InvalidRequest

Document = dict[str, Any]
# Fields that mean the same on both sides.
SHARED: Final = ("stream", "temperature", "top_p", "top_k")
TOOL_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}


def chat_fields(body: bytes) -> Document:
    """The chat that asks for the same; raises InvalidRequest for what has no counterpart."""
    try:
        return _chat_fields(msgspec.json.decode(body))
    except (KeyError, TypeError, AttributeError) as error:
        # The document is the client's: what is missing in it, or of another type, is its mistake.
        raise InvalidRequest(f"a field is missing or has a wrong type: {error}") from error


def _chat_fields(asked: Document) -> Document:
    messages = _system(asked.get("system"))
    for message in asked["messages"]:
        messages += _messages(message)
    fields: Document = {name: asked[name] for name in SHARED if asked.get(name) is not None}
    fields["messages"] = messages
    if asked.get("stop_sequences"):
        fields["stop"] = asked["stop_sequences"]
    metadata: Document = asked.get("metadata") or {}
    user = metadata.get("user_id")
    if user:
        fields["user"] = user
    return fields | _tools(asked) | _response_format(asked)


def _system(system: str | list[Document] | None) -> list[Document]:
    if not system:
        return []
    text = system if isinstance(system, str) else "\n".join(part["text"] for part in system)
    return [{"role": "system", "content": text}]


def _messages(message: Document) -> list[Document]:
    """One message as one or several: results of tools are messages of their own in a chat."""
    content = message["content"]
    if isinstance(content, str):
        return [{"role": message["role"], "content": content}]
    if message["role"] == "assistant":
        return [_assistant(content)]
    results = [_tool_result(block) for block in content if block["type"] == "tool_result"]
    shown = [
        part
        for block in content
        if block["type"] == "tool_result" and isinstance(block.get("content"), list)
        for part in block["content"]
        if part["type"] == "image"
    ]
    parts = [_part(block) for block in content if block["type"] != "tool_result"]
    parts += [_part(block) for block in shown]
    return results + ([{"role": message["role"], "content": parts}] if parts else [])


def _assistant(content: list[Document]) -> Document:
    """What the model said and which tools it called; its thoughts do not go back."""
    text = "".join(block["text"] for block in content if block["type"] == "text")
    calls = [
        {
            "id": block["id"],
            "type": "function",
            "function": {
                "name": block["name"],
                "arguments": msgspec.json.encode(block["input"]).decode(),
            },
        }
        for block in content
        if block["type"] == "tool_use"
    ]
    return {"role": "assistant", "content": text or None} | ({"tool_calls": calls} if calls else {})


def _tool_result(block: Document) -> Document:
    content = block.get("content") or ""
    if not isinstance(content, str):
        content = "".join(part.get("text", "") for part in content if part["type"] == "text")
    if block.get("is_error"):
        content = f"error: {content}"
    return {"role": "tool", "tool_call_id": block["tool_use_id"], "content": content}


def _part(block: Document) -> Document:
    source: Document = block.get("source") or {}
    match block["type"], source.get("type"):
        case "text", _:
            return {"type": "text", "text": block["text"]}
        case "image", "base64":
            url = f"data:{source['media_type']};base64,{source['data']}"
            return {"type": "image_url", "image_url": {"url": url}}
        case "image", "url":
            return {"type": "image_url", "image_url": {"url": source["url"]}}
        case "document", "text":
            return {"type": "text", "text": source["data"]}
        case "document", "base64":
            data = f"data:{source['media_type']};base64,{source['data']}"
            file = {"filename": block.get("title") or "document.pdf", "file_data": data}
            return {"type": "file", "file": file}
        case kind, _:
            raise _refusal(
                f"a content block of type {kind!r} needs a server that speaks Anthropic's API"
            )


def _tools(asked: Document) -> Document:
    tools = asked.get("tools")
    if not tools:
        return {}
    fields: Document = {"tools": [_tool(tool) for tool in tools]}
    choice = asked.get("tool_choice")
    if choice:
        kind = choice["type"]
        if kind == "tool":
            fields["tool_choice"] = {"type": "function", "function": {"name": choice["name"]}}
        else:
            fields["tool_choice"] = TOOL_CHOICES[kind]
        if choice.get("disable_parallel_tool_use"):
            fields["parallel_tool_calls"] = False
    return fields


def _tool(tool: Document) -> Document:
    if tool.get("type", "custom") != "custom":
        raise _refusal(
            f"a tool of type {tool['type']!r} needs a server that speaks Anthropic's API"
        )
    function = {"name": tool["name"], "parameters": tool["input_schema"]}
    if tool.get("description"):
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


def _response_format(asked: Document) -> Document:
    output: Document = asked.get("output_config") or {}
    wanted: Document | None = output.get("format") or asked.get("output_format")
    if not wanted:
        return {}
    schema = {"name": "answer", "schema": wanted["schema"], "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _refusal(message: str) -> InvalidRequest:
    return InvalidRequest(message, parameter="messages")
