import json
import os
from pathlib import Path

import pytest

from ptjax.rewards.base import Failed
from ptjax.rewards.ifeval import ifeval
from ptjax.rewards.instructions import INSTRUCTIONS, follows, sentences

DATA = Path(os.environ.get("PTJAX_SHARED_DATA") or "nowhere")

# (instruction, arguments, a text that follows, one that does not)
EXAMPLES = [
    ("keywords:existence", {"keywords": ["cat", "dog"]}, "Cats and dogs", "Cats"),
    (
        "keywords:frequency",
        {"keyword": "no", "frequency": 2, "relation": "at least"},
        "No no",
        "No",
    ),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "Cats", "A cat."),
    (
        "keywords:letter_frequency",
        {"letter": "a", "let_frequency": 2, "let_relation": "less than"},
        "A b",
        "A a",
    ),
    (
        "language:response_language",
        {"language": "de"},
        "Das Wetter ist heute schön.",
        "It is cold.",
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        "Mr. Fox ran. He fell!",
        "Mr. Fox ran e.g. away.",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n***\n***\nb"),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "less than"},
        "two words",
        "now three words",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "weekend"},
        'a\n\n"Weekend, yes',
        "weekend\n\nweekends",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [b]", "[a]"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "a\np. p. s b", "P.S. b"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n** b"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "My answer is so."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* **b**", "*a* **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Day", "num_sections": 2},
        "Day 1 a Day 2 b",
        "Day 1 a Day b",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "a <<The title>>", "<< >>"),
    ("combination:two_responses", {}, "a\n******\nb", "a\n******\na"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it"}, "say it. I do", "I say it"),
    ("startend:end_checker", {"end_phrase": "Any more?"}, 'So. Any more?"', "Any more? No"),
    ("startend:quotation", {}, ' "a" ', '"a'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "THE END is",
        "THE End",
    ),
    ("change_case:english_capital", {}, "ALL OF IT", "ALL of IT"),
    ("change_case:english_lowercase", {}, "all of it", "все это"),
    ("punctuation:no_comma", {}, "a; b", "a, b"),
]


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), EXAMPLES, ids=lambda x: str(x)[:30])
def test_each_instruction(name, arguments, good, bad):
    assert follows(good, name, arguments)
    assert not follows(bad, name, arguments)
    assert not follows(" \n", name, arguments)


def test_no_instruction_is_without_an_example():
    assert {name for name, *_ in EXAMPLES} == {*INSTRUCTIONS}


def test_sentences_end_where_no_abbreviation_does():
    assert sentences("Dr. A. Smith paid 3.50 in the U.S. today. Why? Nobody knows...") == 3
    assert sentences("one") == 1 and sentences("") == 0


NAMES = ["punctuation:no_comma", "length_constraints:number_words"]
ARGUMENTS = [None, {"num_words": 2, "relation": "at least", "frequency": None}]


def test_the_share_of_a_rows_instructions_or_all_of_them():
    texts = ["one two", "one, two", "one,"]
    rows = [NAMES] * 3, [ARGUMENTS] * 3
    assert ifeval([], texts, *rows) == [1, 0.5, 0]
    assert ifeval([], texts, *rows, every=True) == [1, 0, 0]
    assert ifeval([], texts, [[], None, ["punctuation:no_comma"]], None) == [None, None, 0]


def test_loosely_a_first_or_last_line_does_not_count():
    text = "Sure, here it is:\nno comma here"
    row = [["punctuation:no_comma"]], [[{}]]
    assert ifeval([], [text], *row) == [0] and ifeval([], [text], *row, strict=False) == [1]


def test_a_row_that_is_not_understood_is_missing():
    names = [["punctuation:no_coma"], NAMES, ["startend:end_checker"]]
    found = ifeval([], ["a"] * 3, names, [[{}], [{}], [{"phrase": "x"}]])
    assert all(isinstance(one, Failed) for one in found)
    assert "did you mean 'punctuation:no_comma'" in str(found[0])


@pytest.mark.skipif(
    not (DATA / "ifeval").exists(), reason="needs the official verdicts: PTJAX_SHARED_DATA"
)
def test_verdicts_are_the_official_ones():
    rows = (DATA / "ifeval" / "input_data.jsonl").read_text().splitlines()
    asked = {row["prompt"]: row for row in map(json.loads, rows)}
    wrong, count = [], 0
    for path in (DATA / "ifeval_official_verdicts").glob("*.jsonl"):
        for line in path.read_text().splitlines():
            said = json.loads(line)
            row = asked.get(said["prompt"], {"instruction_id_list": [], "kwargs": []})
            known = dict(zip(row["instruction_id_list"], row["kwargs"], strict=True))
            verdicts = zip(
                said["instruction_id_list"], said["follow_instruction_list"], strict=True
            )
            for name, truth in verdicts:
                if name in known and not name.startswith("language"):
                    one = [[name]], [[known[name]]]
                    found = ifeval([], [said["response"]], *one, strict="strict" in path.name)
                    count += 1
                    wrong += [(name, said["response"][:80])] if found != [truth] else []
    assert count > 500 and wrong == []
