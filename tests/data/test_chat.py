import functools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ptjax.data.chat import Chat
from ptjax.data.formats import Example
from ptjax.data.messages import BadForm
from ptjax.data.template import Template
from ptjax.data.turns import split_turns
from ptjax.errors import UserError
from tests.data import templates
from tests.data.conftest import make_tokenizer

CONTROL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
CHATML_LIKE = ["CHATML", "TRIMMED", "MARKED", "STRIPPING", "TRAILING", "TOOLS"]
CHATML = make_tokenizer()


@functools.cache
def chat(name="CHATML", tokenizer=CHATML, **options):
    return Chat(tokenizer, getattr(templates, name), **options)


def talk(*contents):
    roles = ["user", "assistant"] * len(contents)
    return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]


def encode(chat, messages, **more):
    (made,) = chat.encode([Example(messages=messages, **more)])
    return made


def trained(chat, sequence):
    """The trained text, runs of trained tokens apart."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], sequence.mask, [0]])))
    runs = [sequence.tokens[a:b] for a, b in edges.reshape(-1, 2)]
    return [chat.tokenizer.decode(run) for run in runs]


words = st.text("ab <|>\n.éß你", max_size=12).filter(str.strip)
poisoned = st.lists(st.sampled_from([*CONTROL, "a", " b", "\n", "<|", "im_end|>"]), min_size=1)
contents = st.one_of(words, poisoned.map("".join).filter(str.strip))


@pytest.mark.parametrize("name", CHATML_LIKE)
@settings(max_examples=60, deadline=None)
@given(st.lists(contents, min_size=2, max_size=6))
@example(["<", "<", "<", "<", "<", "   <"])
@example(["<", "   <", "<", "   <|im_end|>"])
def test_the_mask_is_the_assistants_content_and_its_end(name, said):
    made = encode(chat(name), talk(*said))
    strip = str.strip if name == "TRIMMED" else str
    expected = sorted(strip(answer) + "<|im_end|>" for answer in said[1::2])
    found = sorted(run for sequence in made for run in trained(chat(name), sequence))
    assert found == expected


@pytest.mark.parametrize("name", [name for name in CHATML_LIKE if name != "STRIPPING"])
@settings(max_examples=60, deadline=None)
@given(st.lists(contents, min_size=2, max_size=6))
def test_control_strings_in_content_stay_text(name, said):
    one = chat(name)
    (sequence,) = encode(one, talk(*said))
    used = said if len(said) % 2 == 0 else said[:-1]
    ids = CHATML.convert_tokens_to_ids(CONTROL)
    counts = [int((sequence.tokens == i).sum()) for i in ids]
    assert counts == [len(used), len(used), 0]
    strip = str.strip if name == "TRIMMED" else str
    whole = "".join(
        f"<|im_start|>{'user' if i % 2 == 0 else 'assistant'}\n{strip(content)}<|im_end|>\n"
        for i, content in enumerate(used)
    )
    assert CHATML.decode(sequence.tokens) == whole[:-1]


@settings(max_examples=100, deadline=None)
@given(st.lists(words, min_size=2, max_size=6))
def test_without_control_strings_it_is_one_plain_tokenisation(said):
    one = chat()
    said = [content.lstrip() for content in said]
    sequence = encode(one, talk(*said))[-1]
    used = said if len(said) % 2 == 0 else said[:-1]
    text = CHATML.apply_chat_template(
        talk(*used), tokenize=False, chat_template=templates.CHATML
    ).removesuffix("\n")
    assert sequence.tokens.tolist() == CHATML(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", CHATML_LIKE)
@settings(max_examples=60, deadline=None)
@given(contents, contents)
@example("<", "   <")
@example("<", "   <|im_end|>")
def test_what_is_trained_follows_the_prompt_that_is_sampled_from(name, asked, answer):
    (sequence,) = encode(chat(name), talk(asked, answer))
    prompt = chat(name).template.render(talk(asked), None, prompt=True)
    genuine = prompt.genuine or chat(name).template.tokens.places(prompt.text)
    ids, _ = chat(name).template.tokens.encode_around(prompt.text, genuine)
    assert sequence.tokens[: len(ids)].tolist() == ids.tolist()
    assert not sequence.mask[: len(ids)].any() and sequence.mask[len(ids) :].all()


def test_a_thousand_poisoned_messages():
    rng = np.random.default_rng(0)
    pieces = [*CONTROL, "hello", "\n", " ", "<|", "|>", "assistant\n"]
    for kind in range(3):
        made = make_tokenizer(special=("<s>", "</s>")[:kind])
        control = [i for i, token in made.added_tokens_decoder.items() if token.special]
        for _ in range(334):
            user, answer = ("".join(rng.choice([*pieces, "<s>"], 6)) for _ in range(2))
            (sequence,) = encode(chat(tokenizer=made), talk("x" + user, "y" + answer))
            assert int(np.isin(sequence.tokens, control).sum()) == 4
            (text,) = chat(tokenizer=made).encode(
                [Example(prompt=user + "x", completion="a" + answer)]
            )
            assert int(np.isin(text[0].tokens, control).sum()) == 1


def test_stripped_thinking_is_trained_turn_by_turn():
    said = ("hi", "<think>\none\n</think>\n\nfirst", "more", "<think>\ntwo\n</think>\n\nsecond")
    one = chat("STRIPPING")
    made = encode(one, talk(*said))
    assert [trained(one, sequence) for sequence in made] == [
        [said[1] + "<|im_end|>"],
        [said[3] + "<|im_end|>"],
    ]
    assert "one" not in CHATML.decode(made[1].tokens)
    for upto, sequence in zip((1, 3), made, strict=True):
        prompt = CHATML.apply_chat_template(
            talk(*said[:upto]), add_generation_prompt=True, chat_template=templates.STRIPPING
        )["input_ids"]
        assert sequence.tokens[: len(prompt)].tolist() == prompt
        assert not sequence.mask[: len(prompt)].any() and sequence.mask[len(prompt) :].all()


def test_only_the_turns_that_change_get_sequences_of_their_own():
    said = ("hi", "plain", "more", "<think>\ntwo\n</think>\n\nsecond", "so", "last")
    made = encode(chat("STRIPPING"), talk(*said))
    assert [len(trained(chat(), sequence)) for sequence in made] == [1, 2]


def test_thinking_opened_by_the_prompt():
    one = chat("OPENING")
    said = ("hi", "<think>\nhm <|im_end|>\n</think>\n\nyes", "more", "no thought")
    first, second = encode(one, talk(*said))
    assert trained(one, first) == ["hm <|im_end|>\n</think>\n\nyes<|im_end|>"]
    assert CHATML.decode(second.tokens).endswith("<think>\n\n</think>\n\nno thought<|im_end|>")
    assert int((first.tokens == CHATML.eos_token_id).sum()) == 2


def test_thinking_that_the_template_hides_before_tool_calls_is_refused():
    one = chat("OPENING_CALLS")
    messages = talk("hi", "<think>why</think>ok")
    assert trained(one, encode(one, messages)[0]) == ["why\n</think>\n\nok<|im_end|>"]
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    messages[1]["tool_calls"] = [call]
    made = encode(one, messages)
    assert isinstance(made, BadForm)
    assert made.reason == "the chat template hides an assistant turn's thinking before tool calls"


def test_a_turn_that_changes_the_text_before_it_is_refused():
    made = encode(chat("COUNTING"), talk("hi", "yes", "more", "no"))
    assert isinstance(made, BadForm)
    assert made.reason == "the chat template's assistant turns cannot be told from their prompts"


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("CHATML", "[<think>hm</think>yes<|im_end|>]", "[no<|im_end|>]"),
        ("ANSWERS_MARKED", "<think>hm</think>[yes<|im_end|>]", "[no<|im_end|>]"),
        ("SIGNED", "[<think>hm</think>yes] (sent)<|im_end|>", "[no] (sent)<|im_end|>"),
    ],
)
def test_marks_say_which_part_of_a_turn_is_trained(name, first, second):
    """To the token; the end of the turn only where it follows what is marked."""
    (sequence,) = encode(chat(name), talk("hi", "<think>hm</think>yes", "more", "no"))
    pieces = np.split(sequence.tokens, np.flatnonzero(np.diff(sequence.mask, prepend=False)))
    texts = [CHATML.decode(piece) for piece in pieces]
    shown = "".join(f"[{text}]" if i % 2 else text for i, text in enumerate(texts))
    assert shown == (
        f"<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n{first}\n"
        f"<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n{second}"
    )


def test_a_template_without_control_tokens_gets_an_end():
    one = chat("BARE")
    (sequence,) = encode(one, talk("hi", "yes", "more", "no"))
    assert trained(one, sequence) == ["yes\n", "no\n<|im_end|>"]


def test_train_on():
    messages = talk("hi", "yes", "more", "no", "well")
    last, whole = chat(train_on="last"), chat(train_on="all")
    (sequence,) = encode(last, messages)
    assert trained(last, sequence) == ["no<|im_end|>"]
    (sequence,) = encode(whole, messages)
    assert CHATML.decode(sequence.tokens).endswith("well<|im_end|>\n")
    assert not sequence.mask[0] and sequence.mask[1:].all()


def test_messages_that_say_they_are_not_trained():
    messages = talk("hi", "yes", "more", "no")
    messages[3]["trained"] = False
    one = chat()
    assert trained(one, encode(one, messages)[0]) == ["yes<|im_end|>"]
    assert encode(chat(train_on="last"), messages) == []
    messages[1]["trained"] = False
    assert encode(one, messages) == []


def test_prompt_and_completion_messages():
    one = chat()
    messages = talk("hi", "yes", "more", "no")
    (made,) = one.encode([Example(prompt=messages[:3], completion=messages[3:])])
    assert trained(one, made[0]) == ["no<|im_end|>"]


def test_text_pairs_are_encoded_apart_and_end():
    one = chat()
    pair, empty, alone = one.encode(
        [Example(prompt="a b", completion=" c"), Example(text=""), Example(text="d e")]
    )
    parts = [CHATML(part)["input_ids"] for part in ("a b", " c")]
    assert pair[0].tokens.tolist() == [*parts[0], *parts[1], CHATML.eos_token_id]
    assert trained(one, pair[0]) == [" c<|im_end|>"]
    assert empty == []
    assert alone[0].mask.tolist() == [False, *[True] * (len(alone[0].mask) - 1)]


def test_tools_go_through_the_template_or_are_refused():
    call = {
        "type": "function",
        "function": {"name": "f", "arguments": {"<|im_end|>": "<|im_start|>"}},
    }
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "<|im_end|>"},
        {"role": "assistant", "content": "a"},
    ]
    tools = [{"type": "function", "function": {"name": "f", "description": "<|im_end|>"}}]
    one = chat("TOOLS")
    (sequence,) = encode(one, messages, tools=tools)
    assert int((sequence.tokens == CHATML.eos_token_id).sum()) == 5
    runs = trained(one, sequence)
    assert runs[0].startswith("<tool_call>") and runs[0].endswith("</tool_call><|im_end|>")
    assert runs[1] == "a<|im_end|>"
    for more, name in (({"tools": tools}, "tools"), ({}, "tool calls")):
        refused = encode(chat(), messages, **more)
        assert isinstance(refused, BadForm) and name in refused.reason


def test_reasoning_goes_into_content_where_the_template_reads_none():
    messages = talk("hi", "yes")
    messages[1]["reasoning_content"] = "hm"
    one = chat()
    assert trained(one, encode(one, messages)[0]) == ["<think>\nhm\n</think>\n\nyes<|im_end|>"]


def test_conversations_the_template_refuses():
    refusing = (
        templates.CHATML + "{% if messages|length > 2 %}{{ raise_exception('no!') }}{% endif %}"
    )
    made = encode(Chat(CHATML, refusing), talk("a", "b", "c", "d"))
    assert isinstance(made, BadForm) and made.detail == "no!"
    made = encode(chat(), talk("a", "b")[1:])
    assert isinstance(made, BadForm) and "begins with the assistant" in made.reason


def test_templates_from_files_and_their_defects(tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_text(templates.CHATML)
    assert encode(Chat(CHATML, str(path)), talk("a", "b"))
    for wrong, message in {
        "no.jinja": "no such file",
        "{% for m in messages %}": "does not compile: line 1",
    }.items():
        with pytest.raises(UserError, match=message):
            encode(Chat(CHATML, wrong), talk("a", "b"))
    with pytest.raises(UserError, match="has no chat template"):
        encode(Chat(make_tokenizer(None)), talk("a", "b"))


def test_end_markers_that_are_no_special_tokens():
    from tokenizers import AddedToken

    made = make_tokenizer(None)
    made.add_tokens([AddedToken("<turn>", special=False), AddedToken("</turn>", special=False)])
    template = templates.CHATML.replace("<|im_start|>", "<turn>").replace("<|im_end|>", "</turn>")
    one = Chat(made, template)
    (sequence,) = encode(one, talk("a</turn>b", "c<turn>d"))
    ids = made.convert_tokens_to_ids(["<turn>", "</turn>"])
    assert [int((sequence.tokens == i).sum()) for i in ids] == [2, 2]
    assert trained(one, sequence) == ["c<turn>d</turn>"]


MARKS = [f"<{end}{name}>" for name in ("think", "tool_call", "tool_response") for end in ("", "/")]


@functools.cache
def marked():
    """A tokenizer to which Qwen3's marks are tokens, and none of them special."""
    from tokenizers import AddedToken

    made = make_tokenizer()
    made.add_tokens([AddedToken(mark, special=False) for mark in MARKS])
    return made


def counted(tokens, *strings):
    """How often each is there as a token."""
    return [int((np.asarray(tokens) == i).sum()) for i in marked().convert_tokens_to_ids(strings)]


@pytest.mark.parametrize("name", ["CHATML", "OPENING"])
@pytest.mark.parametrize("end", ["c", "c <|im_end|>", "\n\n"])
def test_thinking_marks_that_are_tokens_stay_tokens(name, end):
    """And an answer that is all thinking ends with the end of its turn, not of the thought."""
    one = chat(name, marked())
    (sequence,) = encode(one, talk("a", f"<think>b</think>{end}"))
    assert counted(sequence.tokens, *MARKS[:2], "<|im_end|>") == [1, 1, 2]
    assert sequence.tokens[-1] == marked().eos_token_id and sequence.mask[-1]


def test_nobody_but_the_template_writes_a_tool_turn_nor_but_the_assistant_its_marks():
    forged = "".join(f"{mark}9" for mark in MARKS)
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    messages = [
        {"role": "system", "content": "Think within <think></think>."},
        {"role": "user", "content": forged},
        {"role": "assistant", "content": "<think>b</think>", "tool_calls": [call]},
        {"role": "tool", "content": forged},
        {"role": "assistant", "content": "<tool_response>c</tool_response>"},
    ]
    tools = [{"type": "function", "function": {"name": "f", "description": forged}}]
    one = chat("RESPONDING", marked())
    (sequence,) = encode(one, messages, tools=tools)
    assert counted(sequence.tokens, *MARKS) == [2, 2, 1, 1, 1, 1]
    text = marked().apply_chat_template(
        messages, tools=tools, tokenize=False, chat_template=templates.RESPONDING
    )
    assert marked().decode(sequence.tokens) == text.removesuffix("\n")
    assert "".join(trained(one, sequence)).count("<|im_end|>") == 2
    prompt = one.template.prompt_ids(messages[:4], tools)
    assert sequence.tokens[: len(prompt)].tolist() == prompt.tolist()
    assert counted(prompt, *MARKS) == [2, 2, 1, 1, 1, 1]


def test_sequences_hold_every_trained_turn_once():
    template = Template(CHATML, templates.STRIPPING)
    said = ["q", "<think>x</think>a"] * 5
    sequences = split_turns(template, talk(*said))
    assert sum(len(sequence.spans) for sequence in sequences) == 5
