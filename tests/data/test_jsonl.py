import os

import pytest

from ptjax.data.jsonl import JsonLines, parse_line
from ptjax.data.rows import BadRow
from ptjax.errors import UserError

GOOD = b'{"text": "a"}\n'
BAD = {
    "is not JSON": b'{"text": a}\n',
    "empty line": b"\n",
    "is an array, not an object": b'["a"]\n',
    "is a number, not an object": b"3\n",
    "is null, not an object": b"null\n",
    "is not UTF-8": b'{"text": "\xff"}\n',
    "holds a NUL byte": b'{"text": "\0"}\n',
    "names a key twice": b'{"text": "a", "text": "b"}\n',
    "holds NaN or Infinity": b'{"text": NaN}\n',
    "nested too deeply": b'{"text": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n",
    "more than one value": b'{"text": "a"} {"text": "b"}\n',
    "holds half a surrogate pair": b'{"text": "\\ud800"}\n',
    "holds a number too long": b'{"text": ' + b"9" * 5000 + b"}\n",
}


@pytest.mark.parametrize("reason", BAD)
def test_bad_line_is_named_and_its_neighbours_are_read(tmp_path, reason):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + BAD[reason] + GOOD)
    before, bad, after = JsonLines(str(path)).read(0, 3)
    assert before == after == {"text": "a"}
    assert isinstance(bad, BadRow)
    assert bad.where == f"{path}, line 2"
    assert bad.reason.startswith(reason)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"text": a}', "column 10: no value begins here; a string stands in double quotes"),
        ('{"text": "a" "b": 1}', "column 14: a comma or a closing bracket is missing"),
        ("{'text': 1}", "column 2: a key in double quotes is expected"),
        ('{"text": "a\tb"}', r"column 12: a string is cut off, or holds a line's end or a tab"),
        ('{"text": "\\x"}', "column 11: a backslash escapes nothing here"),
    ],
)
def test_why_a_line_is_not_json(text, said):
    found = parse_line(text.encode() + b"\n")
    assert isinstance(found, tuple)
    reason, detail = found
    assert reason == "is not JSON" and detail.startswith(said)


@pytest.mark.parametrize("tail", [b'{"text": "a', b'{"text": ', b'{"text": "a"', b"{"])
def test_cut_off_last_line(tmp_path, tail):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + tail)
    _, bad = JsonLines(str(path)).read(0, 2)
    assert isinstance(bad, BadRow) and bad.reason.startswith("cut off")


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"])
def test_byte_order_mark(tmp_path, mark):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(mark + GOOD)
    (bad,) = JsonLines(str(path)).read(0, 1)
    assert isinstance(bad, BadRow) and "UTF-8" in bad.reason


@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n \n"])
def test_blank_lines_at_the_end_are_no_rows(tmp_path, end):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD * 3 + GOOD.rstrip() + end)
    rows = JsonLines(str(path))
    assert len(rows) == 4
    assert rows.read(0, 9) == [{"text": "a"}] * 4


def test_lines_longer_than_a_chunk_and_random_access(tmp_path):
    path = tmp_path / "rows.jsonl"
    texts = ["x" * (1 << 24), "ü", "z" * 5]
    path.write_text("".join(f'{{"text": "{text}"}}\n' for text in texts), encoding="utf-8")
    rows = JsonLines(str(path))
    assert [rows.read(i, i + 1)[0]["text"] for i in (2, 0, 1)] == [texts[2], texts[0], texts[1]]


def test_only_blank_is_empty(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n  \n")
    with pytest.raises(UserError, match="the file is empty"):
        JsonLines(str(path))


def test_fingerprint_follows_the_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD)
    before = JsonLines(str(path)).fingerprint()
    os.utime(path, ns=(1, 1))
    assert JsonLines(str(path)).fingerprint() != before
