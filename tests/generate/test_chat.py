"""Conversations, and the command that holds them."""

import dataclasses
import io
import json
import subprocess
import sys

import numpy as np
import pytest

from ptjax.errors import UserError
from ptjax.generate import __main__ as command
from ptjax.generate.chat import Conversation, chat_ids
from ptjax.models.decoder import Decoder
from ptjax.models.load import Bundle
from tests import toy
from tests.data.conftest import make_tokenizer
from tests.data.templates import CHATML
from tests.golden import weights

SETTINGS = {"max_tokens": 5, "temperature": 0.0, "seed": 0}


def make_bundle(template):
    tokenizer = make_tokenizer(template)
    config = dataclasses.replace(toy.CONFIG, vocab=len(tokenizer), max_positions=96)
    return Bundle(Decoder(config), toy.params(config), tokenizer, {}, {}, {}, "toy")


@pytest.fixture(scope="module")
def bundle():
    return make_bundle(CHATML)


@pytest.fixture(scope="module")
def plain():
    return make_bundle(None)


def test_prompts_are_the_templates_and_turns_are_remembered(bundle):
    chat = Conversation(bundle, SETTINGS, system="Be brief.")
    heard = []
    whole = chat.reply("What is it?", heard.append)
    assert not whole
    assert chat.messages == [
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "".join(heard)},
    ]
    chat.messages[1]["content"] = "It is."
    said = bundle.tokenizer.decode(chat.prompt_ids("Why?"))
    turns = [("system", "Be brief."), ("user", "What is it?"), ("assistant", "It is.")]
    turns += [("user", "Why?")]
    expected = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
    assert said == expected + "<|im_start|>assistant\n"
    chat.reset()
    assert chat.messages == [] and chat.system == "Be brief."


def test_control_strings_in_a_prompt_stay_text(bundle):
    ids = Conversation(bundle, SETTINGS).prompt_ids("<|im_end|>")
    end = bundle.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ids.count(end) == 1


def test_too_long_a_conversation_is_one_line_and_changes_nothing(bundle):
    chat = Conversation(bundle, SETTINGS)
    with pytest.raises(UserError, match="96 positions"):
        chat.reply("the fox " * 100, print)
    assert chat.messages == []


def test_ctrl_c_keeps_what_was_said(bundle):
    chat = Conversation(bundle, SETTINGS)

    def interrupt(text):
        raise KeyboardInterrupt

    assert chat.reply("Hello", interrupt) is False
    assert [m["role"] for m in chat.messages] == ["user", "assistant"]


def test_without_a_template_text_is_continued(plain):
    chat = Conversation(plain, SETTINGS)
    assert chat.prompt_ids("The quick") == plain.tokenizer.encode("The quick")
    chat.reply("The quick", lambda text: None)
    assert chat.messages == []


def talk(monkeypatch, capsys, bundle, *argv, stdin=None):
    """Runs the command with a model that is there; returns what it printed."""
    sources = []

    def load(source, head):
        assert head == "lm"
        sources.append(source)
        return bundle

    monkeypatch.setattr("ptjax.workdir.load", load)
    monkeypatch.setattr("ptjax.workdir.split_source", lambda source: (source, None))
    monkeypatch.setattr(sys, "argv", ["generate", "toy", "--max_tokens=5", *argv])
    if stdin is not None:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
    command.main()
    return capsys.readouterr(), sources


def test_one_prompt_has_one_answer_and_the_seed_repeats_it(monkeypatch, capsys, bundle):
    first, sources = talk(monkeypatch, capsys, bundle, "--prompt=Hi", "--seed=4", "--step=7")
    again, _ = talk(monkeypatch, capsys, bundle, "--prompt=Hi", "--seed=4")
    other, _ = talk(monkeypatch, capsys, bundle, "--prompt=Hi", "--seed=5")
    assert sources == ["toy@7"]
    assert first.out == again.out != other.out
    assert "toy" in first.err and first.out.endswith("\n")


def test_piped_lines_are_answered_each_on_its_own(monkeypatch, capsys, bundle):
    one, _ = talk(monkeypatch, capsys, bundle, "--temperature=0", stdin="Hi\n\nHi\n")
    half = len(one.out) // 2
    assert one.out[:half] == one.out[half:] != ""


def test_a_model_without_a_template_says_so(monkeypatch, capsys, plain):
    said, _ = talk(monkeypatch, capsys, plain, "--prompt=The quick")
    assert "no chat template" in said.err
    with pytest.raises(UserError, match="--system needs"):
        talk(monkeypatch, capsys, plain, "--prompt=x", "--system=y")


def test_a_conversation_in_the_terminal(monkeypatch, capsys, bundle):
    lines = iter(["/system Be kind.", "/system", "Hi", "/reset", "/rest", "a " * 200, "", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    chat = Conversation(bundle, SETTINGS)
    command.converse(chat)
    said = capsys.readouterr()
    assert "system: Be kind." in said.err and "did you mean '/reset'" in said.err
    assert "(/reset starts anew)" in said.err and "[...]" in said.out
    assert chat.messages == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "missing MODEL"),
        (["m", "--prmpt=x"], "did you mean '--prompt'"),
        (["m", "--temperature=hot"], "--temperature"),
        (["m", "--dtype=int8"], "--dtype=int8"),
    ],
)
def test_mistakes_are_one_line(argv, message):
    run = subprocess.run(
        [sys.executable, "-m", "ptjax.generate", *argv], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 2
    assert run.stderr.startswith("error: ") and run.stderr.count("\n") == 1
    assert message in run.stderr


def test_help_imports_no_jax():
    code = "import sys, ptjax.generate.__main__; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_smollm2_prompts_are_the_goldens():
    from ptjax.data.template import Template
    from ptjax.models.tokenizer import load_tokenizer

    try:
        tokenizer = load_tokenizer("smollm2-135m-instruct")
    except UserError as error:
        pytest.skip(str(error))
    path = weights.FOLDER / "smollm2_generation.json"
    for chat in json.loads(path.read_text(encoding="utf-8"))["chats"]:
        ids = chat_ids(Template(tokenizer), chat["messages"])
        np.testing.assert_array_equal(ids, chat["prompt_ids"])
