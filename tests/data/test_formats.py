import json

import pytest

from ptjax.data.formats import canonical
from ptjax.data.messages import BadForm

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TURNS = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


def read(row, **columns):
    return canonical(row, columns=columns)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER]},
        {"messages": json.dumps([USER, ANSWER])},
        {"messages": TURNS},
        {"messages": [{**USER, "content": [{"type": "text", "text": "q"}]}, ANSWER]},
        {"messages": [{**USER, "content": [{"type": "text", "value": "q"}]}, ANSWER]},
        {"messages": [USER, {**ANSWER, "content": ["a"]}], "id": 3},
        {"conversations": TURNS},
        {"conversations": [USER, ANSWER]},
        {"instruction": "q", "output": "a"},
        {"instruction": "q", "input": "", "output": "a", "history": []},
    ],
)
def test_conversations_in_every_form(row):
    assert read(row).messages == [USER, ANSWER]


def test_text_and_pairs():
    assert read({"text": "t"}).text == "t"
    pair = read({"prompt": "p", "completion": "c"})
    assert (pair.prompt, pair.completion) == ("p", "c")
    pair = read({"prompt": [USER], "completion": [ANSWER]})
    assert (pair.prompt, pair.completion) == ([USER], [ANSWER])


def test_alpaca_joins_instruction_and_input():
    row = {"instruction": "i", "input": "x", "output": "a", "system": "s", "history": [["q", "r"]]}
    contents = [message["content"] for message in read(row).messages or []]
    assert contents == ["s", "q", "r", "i\n\nx", "a"]


def test_sharegpt_tools():
    turns = [
        {"from": "system", "value": "s"},
        TURNS[0],
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "3"},
        TURNS[1],
    ]
    example = read({"conversations": turns, "tools": '[{"name": "f", "parameters": {}}]'})
    assert [message["role"] for message in example.messages or []] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert (example.messages or [])[2]["tool_calls"] == [CALL]
    assert example.tools == [{"type": "function", "function": {"name": "f", "parameters": {}}}]


@pytest.mark.parametrize(
    "call", [CALL, CALL["function"], {"function": {"name": "f", "arguments": '{"x": 1}'}}]
)
def test_tool_calls_in_every_form(call):
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert (read({"messages": [USER, message]}).messages or [])[1]["tool_calls"] == [CALL]


def test_reasoning_parts_and_message_weights():
    parts = [{"type": "reasoning", "value": "r"}, {"type": "text", "value": "a"}]
    message = {"role": "assistant", "content": parts, "loss_weight": 0.0}
    made = (read({"messages": [USER, message]}).messages or [])[1]
    assert made == {**ANSWER, "reasoning_content": "r", "trained": False}


def test_renaming_also_by_path():
    row = {"q": "p", "tries": [{"out": "c"}]}
    pair = read(row, prompt="q", completion="tries.0.out")
    assert (pair.prompt, pair.completion) == ("p", "c")


@pytest.mark.parametrize(
    "row, columns, message",
    [
        ({"prompt": "p", "response": "c"}, {}, "'completion' is missing.*prompt, response"),
        ({"mesages": []}, {}, "mesages; did you mean 'messages'"),
        ({"a": 1}, {"text": "b"}, "'b' is missing.*columns: a"),
        ({"messages": 3}, {}, "not a list of messages.*int"),
        ({"messages": []}, {}, "empty list"),
        ({"messages": "[{"}, {}, "not the JSON of a list"),
        ({"messages": ["a"]}, {}, "not an object"),
        ({"messages": [{"content": "a"}]}, {}, "no 'role'"),
        ({"messages": [{"role": "queen", "content": "a"}]}, {}, "unknown role 'queen'"),
        ({"messages": [{"role": "user", "content": 3}]}, {}, "content is not text"),
        ({"messages": [{"role": "user"}]}, {}, "no 'content'"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, {}, "part is not text"),
        ({"messages": [{**USER, "weight": 0.5}]}, {}, "neither 0 nor 1"),
        ({"messages": [{**ANSWER, "tool_calls": [{}]}]}, {}, "tool call has no name"),
        ({"messages": [USER], "tools": "{"}, {}, "'tools' is text, and not JSON"),
        ({"messages": [USER], "tools": [3]}, {}, "'tools' is not a list of objects"),
        ({"prompt": "p", "completion": [ANSWER]}, {}, "both be text or both"),
        ({"text": ["a"]}, {}, "'text' is not text.*list"),
        ({"conversations": [{"from": "human"}]}, {}, "lacks 'from' or 'value'"),
        ({"conversations": "a"}, {}, "not a list of turns"),
        ({"instruction": "i"}, {}, "'output' is missing"),
        ({"instruction": 1, "output": "a"}, {}, "'instruction' is not text"),
        ({"text": None}, {}, "no known format"),
    ],
)
def test_defects_are_named(row, columns, message):
    with pytest.raises(BadForm) as caught:
        read(row, **columns)
    import re

    assert re.search(message, f"{caught.value.reason} ({caught.value.detail})", re.DOTALL)


def test_a_given_format_is_not_guessed():
    row = {"messages": [USER], "text": "t"}
    assert canonical(row, form="text", columns={}).text == "t"
    with pytest.raises(BadForm, match="'prompt' is missing"):
        canonical(row, form="prompt_completion", columns={})
