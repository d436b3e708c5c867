"""What a row asks, in every form."""

import json

import pytest

from ptjax.data.config import SourceConfig
from ptjax.errors import UserError
from ptjax.preferences.prompts import digest, read_prompts

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello."}
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"type": "function", "function": {"name": "look"}}


@pytest.fixture
def read(tmp_path):
    def rows(*rows, name="prompts.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_prompts(SourceConfig(str(path)))

    return rows


@pytest.mark.parametrize(
    ("row", "asked", "given"),
    [
        ({"prompt": "Hi"}, "Hi", None),
        ({"prompt": "Hi", "completion": "Hello."}, "Hi", "Hello."),
        ({"prompt": [SYSTEM, USER]}, [SYSTEM, USER], None),
        ({"prompt": [USER], "completion": [ANSWER]}, [USER], "Hello."),
        ({"messages": [SYSTEM, USER, ANSWER]}, [SYSTEM, USER], "Hello."),
        ({"messages": [USER, ANSWER, USER]}, [USER, ANSWER, USER], None),
        ({"messages": [USER, {**ANSWER, "weight": 0}, USER]}, [USER, ANSWER, USER], None),
        ({"conversations": [{"from": "human", "value": "Hi"}]}, [USER], None),
        ({"instruction": "Hi", "output": "Hello."}, [USER], "Hello."),
        ({"instruction": "Hi"}, [USER], None),
    ],
)
def test_every_form_of_a_row(read, row, asked, given):
    (prompt,) = read(row)
    assert (prompt.asked, prompt.given, prompt.text) == (asked, given, "Hi")
    assert prompt.columns == {} and prompt.where.endswith("prompts.jsonl, line 1")


def test_other_columns_and_tools_are_kept(read):
    (prompt,) = read({"messages": [USER], "tools": [TOOL], "answer": "4", "level": None})
    assert prompt.columns == {"answer": "4"}
    assert prompt.tools == [TOOL]


def test_columns_of_other_names_are_found(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"question": "Hi", "level": 1}\n')
    (prompt,) = read_prompts(SourceConfig(str(path), columns=(("prompt", "question"),)))
    assert (prompt.asked, prompt.columns) == ("Hi", {"level": 1})


def test_the_digest_is_of_what_the_rows_say(read):
    one = digest(read({"prompt": "Hi", "answer": 1}))
    assert one == digest(read({"answer": 1, "prompt": "Hi"}, name="other.jsonl"))
    assert one != digest(read({"prompt": "Hi", "answer": 2}))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"text": "a"},
            "line 2: no known format of prompts: a row has prompt, messages.*columns: text",
        ),
        ({"prompt": 3}, "line 2: 'prompt' is not a list of messages"),
        ({"prompt": " "}, "line 2: the prompt is empty"),
        ({"prompt": [USER, ANSWER]}, "line 2: the prompt does not end where the assistant speaks"),
        ({"messages": [ANSWER]}, "line 2: the prompt does not end"),
        ({"messages": [{"role": "usr", "content": "a"}]}, "line 2: unknown role 'usr'"),
        ({"prompt": "Hi", "tools": [TOOL]}, "line 2: 'tools' needs a prompt of messages"),
    ],
)
def test_a_bad_row_is_named(read, row, message):
    with pytest.raises(UserError, match=message):
        read({"prompt": "Hi"}, row)


def test_a_line_that_is_no_row_is_named(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "Hi"}\n{"prompt": \n')
    with pytest.raises(UserError, match="line 2: is not JSON"):
        read_prompts(SourceConfig(str(path)))
