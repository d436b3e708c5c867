import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ptjax.data.control import Tokens

CONTROL = ["<s>", "</s>", "<|user|>"]
LINES = ["the quick brown fox", "a < b > c | user s", "hello\nworld\n"] * 3


def make(kind):
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.normalizer = normalizers.Lowercase()
        trainer = trainers.WordPieceTrainer(special_tokens=["<unk>", *CONTROL], show_progress=False)
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        alphabet = list("abcdefghijklmnopqrstuvwxyz <>|/\n▁")
        if kind.startswith("bytes"):
            space = kind == "bytes with prefix"
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
            alphabet = pre_tokenizers.ByteLevel.alphabet()
        else:
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind)
        trainer = trainers.BpeTrainer(
            vocab_size=350,
            special_tokens=["<unk>", *CONTROL],
            initial_alphabet=alphabet,
            show_progress=False,
        )
    tokenizer.train_from_iterator(LINES, trainer)
    if kind == "bytes stripping":
        tokenizer.add_special_tokens(
            [AddedToken("<|user|>", lstrip=True, rstrip=True, special=True)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


KINDS = ["bytes", "bytes with prefix", "bytes stripping", "first", "always", "never", "wordpiece"]
TOKENS = {kind: Tokens(make(kind)) for kind in KINDS}
pieces = st.lists(st.sampled_from([*CONTROL, "a", " b", "\n", "<", "s>", "fox"]), min_size=1)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(st.lists(pieces.map("".join), min_size=1, max_size=4))
def test_only_genuine_control_tokens_come_out(kind, contents):
    tokens = TOKENS[kind]
    text, genuine = "", []
    for content in contents:
        genuine.append((len(text), len(text) + len("<|user|>")))
        text += "<|user|>" + content
    ids, starts = tokens.encode_around(text, genuine)
    mine = ids[np.isin(ids, tokens.ids)]
    assert mine.tolist() == [tokens.tokenizer.convert_tokens_to_ids("<|user|>")] * len(contents)
    found = starts[np.isin(ids, tokens.ids)].tolist()
    assert kind == "bytes stripping" or found == [start for start, _ in genuine]
    assert (np.diff(starts) >= 0).all()
    alone = tokens.encode_content([text])[0][0]
    assert not np.isin(alone, tokens.ids).any()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab <>|\n", min_size=1), min_size=1, max_size=4))
def test_nothing_forged_changes_nothing(kind, contents):
    tokens = TOKENS[kind]
    text = "".join("<|user|>" + content for content in contents)
    ids, _ = tokens.encode_around(text, tokens.places(text))
    assert ids.tolist() == tokens.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(st.text("ab \n", min_size=1), st.text("ab\n", min_size=1))
def test_stretches_beside_a_forged_string_are_tokenised_as_ever(kind, before, after):
    """The parts that hold no forged string come out as they would without it elsewhere."""
    tokens = TOKENS[kind]
    head = f"<|user|>{before}<s>{after}<|user|>"
    clean = f"<|user|>{after}<|user|>"
    places = [(0, 8), (len(head) - 8, len(head))]
    offset = len(head)
    whole = [*places, *[(start + offset, end + offset) for start, end in tokens.places(clean)]]
    ids, _ = tokens.encode_around(head + clean, whole)
    expected = tokens.tokenizer(clean, add_special_tokens=False)["input_ids"]
    assert ids[-len(expected) :].tolist() == expected


def test_content_is_suspicious_only_where_a_control_string_could_begin():
    tokens = TOKENS["bytes"]
    assert not any(map(tokens.suspicious, ["", "a | b", "see <b>this</b>", "<think>a</think>"]))
    assert all(map(tokens.suspicious, ["a < b", "<s>", "x<|user|>", "<<1=2>>"]))
    for text in ("a < b<s>", "<think>c</s>"):
        hidden = tokens.disguise(text, spoken=True, everywhere=True)
        assert len(hidden) == len(text) and tokens.undisguised(hidden) == text
        assert not tokens.places(hidden)


def test_slow_tokenizers_are_refused():
    from ptjax.errors import UserError

    with pytest.raises(UserError, match="not a fast one"):
        Tokens(object())


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_adds_no_space_and_keeps_what_stands_before_it(kind):
    tokens = TOKENS[kind]
    genuine, cut = [(0, len("<|user|>"))], len("<|user|>a\n")
    whole, starts = tokens.encode_around("<|user|>a\nfox", genuine)
    assert cut in starts
    assert tokens.encode_around("<|user|>a\nfox", genuine, [cut])[0].tolist() == whole.tolist()
    for text in ("<|user|>the fox", "<|user|>th</s>e fox"):
        cut = text.index("e fox")
        ids, starts = tokens.encode_around(text, genuine, [cut])
        before, _ = tokens.encode_around(text[:cut], genuine)
        assert cut in starts
        assert ids[: len(before)].tolist() == before.tolist()
