"""Streamed text is the final text; stop strings are exact wherever tokens and bytes are cut."""

from hypothesis import example, given
from hypothesis import strategies as st

from ptjax.generate.transcript import Transcript

EOS = 256


class Bytes:
    """A tokenizer whose tokens are bytes, with one special token."""

    def decode(self, ids, *, skip_special_tokens, clean_up_tokenization_spaces):
        assert skip_special_tokens and not clean_up_tokenization_spaces
        return bytes(i for i in ids if i != EOS).decode("utf-8", "replace")


def feed(transcript, tokens, cuts):
    """Gives the tokens in stretches, and returns the pieces of text that came."""
    bounds = [0, *sorted(cut for cut in cuts if cut < len(tokens)), len(tokens)]
    return [
        transcript.take(tokens[a:b], [-float(t) for t in tokens[a:b]])
        for a, b in zip(bounds, bounds[1:], strict=False)
        if transcript.finished is None
    ]


texts = st.text(st.sampled_from("aé🏔ab\n中"), max_size=12)
cuts = st.lists(st.integers(1, 40), max_size=8)
stops = st.lists(st.text(st.sampled_from("aé🏔b\n"), min_size=1, max_size=3), max_size=2)


@given(text=texts, cuts=cuts, stops=stops)
@example(text="a🏔b", cuts=[1, 2, 3, 4, 5], stops=[])
@example(text="aab", cuts=[1, 2], stops=["ab", "aab"])
def test_text_ends_before_the_first_stop_string(text, cuts, stops):
    tokens = [*text.encode(), EOS]
    row = Transcript(10**6, frozenset({EOS}), tuple(stops), Bytes())
    pieces = feed(row, tokens, cuts)
    ends = [text.find(stop) for stop in stops if stop in text]
    wanted = text[: min(ends, default=len(text))]
    assert row.text == "".join(pieces) == wanted
    assert not any("\ufffd" in piece for piece in pieces)
    assert row.completion().finished == "stop"
    assert row.tokens == tokens[: len(row.tokens)] and row.logps == [-float(t) for t in row.tokens]
    if ends:
        said = bytes(row.tokens).decode()
        ending = [stop for stop in stops if said.startswith(wanted + stop)]
        assert ending and said == wanted + min(ending, key=len)
    else:
        assert row.tokens == tokens


@given(text=texts, limit=st.integers(1, 10), cuts=cuts)
def test_a_row_that_runs_out_of_room_shows_all_it_has(text, limit, cuts):
    tokens = list(text.encode())[:limit]
    row = Transcript(limit, frozenset(), ("zzz",), Bytes())
    pieces = feed(row, list(text.encode()), cuts)
    if len(tokens) == limit:
        assert row.text == "".join(pieces) == bytes(tokens).decode("utf-8", "replace")
    assert row.tokens == tokens and row.completion().finished == "length"


def test_bytes_that_are_no_character_are_shown_once_certain():
    row = Transcript(10, frozenset({EOS}), (), Bytes())
    assert [row.take([t], [0.0]) for t in (0xE4, 0xB8)] == ["", ""]
    assert row.take([ord("a")], [0.0]) == "\ufffda"
    assert row.take([0xE4, EOS], [0.0, 0.0]) == "\ufffd"


def test_without_a_tokenizer_there_is_no_text():
    row = Transcript(2, frozenset({7}))
    assert row.take([5, 7, 9], [-1.0, -2.0, -3.0]) == ""
    assert row.completion() == type(row.completion())((5, 7), (-1.0, -2.0), "stop", "")
