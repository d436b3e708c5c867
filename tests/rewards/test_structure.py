import pytest

from ptjax.errors import UserError
from ptjax.rewards.base import Failed
from ptjax.rewards.structure import format, json_schema

RIGHT = "<think>a\nb</think>\n<answer>c</answer>"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (RIGHT, 1),
        (f" {RIGHT}\n", 1),
        (f"So: {RIGHT}", 0),
        (f"{RIGHT} more", 0),
        ("<think>a</think> so <answer>c</answer>", 0),
        (f"{RIGHT}<answer>d</answer>", 0),
        ("<answer>c</answer><think>a</think>", 0),
        ("<think>a<answer>c</answer></think>", 0),
        ("<think> </think><answer>c</answer>", 0),
        ("<think>a</think><answer>c", 0),
        ("<think>a<think>b</think><answer>c</answer>", 0),
        ("", 0),
    ],
)
def test_each_tag_once_in_order_and_nothing_else(text, value):
    assert format([], [text]) == [value]


def test_other_tags_text_outside_and_a_template_that_opened_the_first():
    assert format([], [f"So: {RIGHT} more"], outside=True) == [1]
    assert format([], ["a</think><answer>c</answer>", RIGHT], opened=True) == [1, 0]
    assert format([], ["<plan>x</plan>", RIGHT], tags=["plan"]) == [1, 0]
    for tags in ("think", [], ["a", "a"], ["<a>"]):
        with pytest.raises(UserError, match="reward format: tag"):
            format([], [RIGHT], tags=tags)


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
    "additionalProperties": False,
}


def test_json_by_the_rows_schema_or_one_for_all():
    texts = [
        '{"name": "Pip", "age": 3}',
        'Here:\n```json\n{"name": "Pip"}\n```',
        '{"age": 3}',
        '{"name": "Pip", "age": 3.5}',
        '{"name": "Pip"',
        "[" * 100_000,
        "NaN",
    ]
    assert json_schema([], texts, schema=SCHEMA) == [1, 1, 0, 0, 0, 0, 0]
    assert json_schema([], texts[:2], schema=SCHEMA, fenced=False) == [1, 0]
    own = ['{"type": "number"}', {"type": "number", "minimum": None}, None]
    assert json_schema([], ["1", "2", '{"name": "x"}'], own, schema=SCHEMA) == [1, 1, 1]
    assert json_schema([], ["1", "2", "3"], own) == [1, 1, None]


def test_a_schema_that_is_none():
    with pytest.raises(UserError, match="schema: 'nothing' is not valid"):
        json_schema([], ["1"], schema={"type": "nothing"})
    remote = {"$ref": "http://127.0.0.1:9/schema.json"}
    found = json_schema([], ["1"] * 3, ["{", {"type": "nothing"}, remote])
    assert all(isinstance(one, Failed) for one in found)
    assert "Unresolvable" in str(found[2]) or "refer" in str(found[2]).lower()
