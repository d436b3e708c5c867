"""Why a text is not JSON, in words for whoever wrote it."""

import json

_WORDS = {
    "Expecting value": "no value begins here; a string stands in double quotes",
    "Expecting property name enclosed in double quotes": (
        "a key in double quotes is expected; no comma stands before a closing brace"
    ),
    "Expecting ':' delimiter": "a colon is missing behind a key",
    "Expecting ',' delimiter": "a comma or a closing bracket is missing",
    "Unterminated string starting at": "the string that begins here has no closing quote",
    "Invalid control character at": (
        r"a string is cut off, or holds a line's end or a tab that is not written \n or \t"
    ),
    "Invalid \\escape": r"a backslash escapes nothing here; write two of them for one",
    "Invalid \\uXXXX escape": r"four hexadecimal digits are missing behind \u",
    "Extra data": "the value ends before",
}


def in_words(error: json.JSONDecodeError) -> str:
    """Where a text stops being JSON, and what is wrong there."""
    line = f"line {error.lineno}, " if error.lineno > 1 else ""
    return f"{line}column {error.colno}: {_WORDS.get(error.msg, error.msg)}"
