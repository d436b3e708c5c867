"""Reads chat messages as they come: parts, tool calls as text, ShareGPT's names for roles."""

import json
from typing import Any

Message = dict[str, Any]
"""role, content, and where given tool_calls, reasoning_content, name, tool_call_id, trained."""

ROLES = ("system", "user", "assistant", "tool")
_ALIASES = {
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
}
_KEPT = ("name", "tool_call_id")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_WEIGHTS = ("loss_weight", "weight", "train")


class BadForm(Exception):
    """A row's content is not of a form we know: (reason, detail)."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def read_messages(given: Any, column: str) -> list[Message]:
    """Brings a list of role/content messages to canonical form.

    Raises:
      BadForm: not a list, empty, an unknown role, content that is not text.

    """
    if isinstance(given, str) and given.lstrip().startswith("["):
        given = _json(given, f"{column!r} is text, and not the JSON of a list")
    if not isinstance(given, list | tuple):
        raise BadForm(f"{column!r} is not a list of messages", f"but {type(given).__name__}")
    if not given:
        raise BadForm(f"{column!r} is an empty list")
    if isinstance(given[0], dict) and "role" not in given[0] and "from" in given[0]:
        return sharegpt_messages(given)
    return [_message(message, f"{column}[{i}]") for i, message in enumerate(given)]


def sharegpt_messages(given: Any) -> list[Message]:
    """Brings ShareGPT's from/value turns to canonical form.

    Raises:
      BadForm: as `read_messages`.

    """
    if isinstance(given, list | tuple) and given and isinstance(given[0], dict):
        if "role" in given[0]:
            return read_messages(given, "conversations")
        turns = []
        for i, turn in enumerate(given):
            if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
                raise BadForm("a turn lacks 'from' or 'value'", f"conversations[{i}]")
            turns.append({**turn, "role": turn["from"], "content": turn["value"]})
        return [_message(turn, f"conversations[{i}]") for i, turn in enumerate(turns)]
    raise BadForm("'conversations' is not a list of turns")


def read_tools(given: Any) -> list[dict[str, Any]]:
    """The tools a conversation may call, from a list or its JSON, in OpenAI's form.

    Raises:
      BadForm: not a list of objects.

    """
    if isinstance(given, str):
        given = _json(given, "'tools' is text, and not JSON") or []
    if not isinstance(given, list | tuple) or not all(isinstance(tool, dict) for tool in given):
        raise BadForm("'tools' is not a list of objects")
    return [
        {"type": "function", "function": tool} if "name" in tool else _without_none(tool)
        for tool in given
    ]


def _message(given: Any, where: str) -> Message:
    if not isinstance(given, dict):
        raise BadForm("a message is not an object", where)
    if "role" not in given:
        raise BadForm(
            "a message has no 'role'", f"{where} has {', '.join(sorted(given)) or 'none'}"
        )
    role = given["role"]
    canonical_role = _ALIASES.get(role, role) if isinstance(role, str) else role
    if canonical_role not in ROLES:
        raise BadForm(f"unknown role {role!r}", where)
    message: Message = {"role": canonical_role}
    if role == "function_call":
        message |= {"content": "", "tool_calls": _calls(given.get("content"), where)}
    else:
        message |= _content(given.get("content"), where)
    if given.get("tool_calls"):
        message["tool_calls"] = _calls(given["tool_calls"], where)
    for key in _THOUGHTS:
        if isinstance(given.get(key), str) and given[key]:
            message["reasoning_content"] = given[key]
            break
    if given.get("content") is None and not message.keys() & {"tool_calls", "reasoning_content"}:
        raise BadForm("a message has no 'content'", where)
    message |= {key: given[key] for key in _KEPT if given.get(key) is not None}
    if not _trained(given, where):
        message["trained"] = False
    return message


def _content(given: Any, where: str) -> Message:
    """Content as text, from text or a list of parts."""
    if given is None or isinstance(given, str):
        return {"content": given or ""}
    if not isinstance(given, list | tuple):
        raise BadForm("a message's content is not text", f"{where}: {type(given).__name__}")
    texts, thoughts, calls = [], [], []
    for part in given:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, dict) else None
        value = part.get("text", part.get("value", part.get(str(kind)))) if kind else None
        if kind == "tool_call":
            calls += _calls(value, where)
        elif kind in ("text", "reasoning", "thinking") and isinstance(value, str):
            (texts if kind == "text" else thoughts).append(value)
        else:
            raise BadForm("a message's part is not text", f"{where}: type {kind!r}")
    made: Message = {"content": "".join(texts)}
    if thoughts:
        made["reasoning_content"] = "".join(thoughts)
    if calls:
        made["tool_calls"] = calls
    return made


def _calls(given: Any, where: str) -> list[dict[str, Any]]:
    """Tool calls in OpenAI's form, with arguments as an object wherever they parse as one."""
    if isinstance(given, str):
        given = _json(given, "a tool call is not JSON", where)
    made = []
    for call in given if isinstance(given, list | tuple) else [given]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadForm("a tool call has no name", where)
        arguments = function.get("arguments", function.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = _json(arguments or "{}", "a tool call's arguments are not JSON", where)
        extra = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        named = {"name": function["name"], "arguments": _without_none(arguments)}
        made.append({**extra, "type": "function", "function": named})
    return made


def _trained(given: dict[str, Any], where: str) -> bool:
    """Whether the row itself leaves this message's tokens to be trained."""
    for key in _WEIGHTS:
        if given.get(key) is not None:
            if given[key] not in (0, 1):
                raise BadForm(f"a message's {key!r} is neither 0 nor 1", f"{where}: {given[key]!r}")
            return bool(given[key])
    return True


def _without_none(value: Any) -> Any:
    """Leaves out keys that are None: columns of Parquet give every struct every key."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value


def _json(text: str, reason: str, detail: str = "") -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadForm(reason, detail) from None
