"""The instructions of IFEval (2311.07911, table 1), each a check of a text.

A check takes the text, then the instruction's own arguments by the names that the data set gives
them, and says whether the text follows.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from ptjax.rewards.languages import detect, share

_WORD = re.compile(r"\w+")
_TOKEN = re.compile(r"[^\W_]+(?:[-'’.&/][^\W_]+)*")
_ABBREVIATION = re.compile(
    r"(?:\b(?:mr|mrs|ms|dr|prof|sr|jr|st|vs|etc|e\.g|i\.e|no|inc|ltd|co|fig|al|u\.s)|\b[a-z]|^\d+)$",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]*]*(?=\s+[\"'“‘(\[*#<]*[A-Z0-9\-*#]|\s*\Z)")
_POSTSCRIPTS = {"P.P.S": r"\bp\.\s?p\.\s?s", "P.S.": r"\bp\.\s?s\."}
_VERDICTS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_FENCE = re.compile(r"\A```(?:json)?(.*?)(?:```)?\Z", re.DOTALL | re.IGNORECASE)

Check = Callable[..., bool]


def _holds(count: int, relation: str, wanted: int) -> bool:
    return count < wanted if relation == "less than" else count >= wanted


def sentences(text: str) -> int:
    """How many sentences a text has: ends of sentences that no abbreviation makes."""
    ends, start = 0, 0
    for found in _SENTENCE_END.finditer(text):
        before = text[start : found.start()].strip()
        if before and (found.group()[0] != "." or not _ABBREVIATION.search(before)):
            ends, start = ends + 1, found.end()
    return ends + bool(text[start:].strip())


def _parts(text: str, separator: str) -> list[str] | None:
    """What separators part; None where nothing stands between two of them."""
    parts = re.split(separator, text)
    inside = [part for i, part in enumerate(parts) if part.strip() or 0 < i < len(parts) - 1]
    return inside if all(part.strip() for part in inside) else None


def _keywords(text: str, keywords: list[str]) -> bool:
    return all(word.lower() in text.lower() for word in keywords)


def _frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return _holds(text.lower().count(keyword.strip().lower()), relation, frequency)


def _forbidden(text: str, forbidden_words: list[str]) -> bool:
    found = (re.search(rf"\b{re.escape(w)}\b", text, re.IGNORECASE) for w in forbidden_words)
    return not any(found)


def _letters(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _holds(text.lower().count(letter.lower()), let_relation, let_frequency)


def _sentences(text: str, num_sentences: int, relation: str) -> bool:
    return _holds(sentences(text), relation, num_sentences)


def _words(text: str, num_words: int, relation: str) -> bool:
    return _holds(len(_WORD.findall(text)), relation, num_words)


def _paragraphs(text: str, num_paragraphs: int) -> bool:
    parts = _parts(text, r"\s?\*\*\*\s?")
    return parts is not None and len(parts) == num_paragraphs


def _first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = text.split("\n\n")
    if sum(bool(part.strip()) for part in parts) != num_paragraphs or nth_paragraph > len(parts):
        return False
    words = parts[nth_paragraph - 1].split()
    said = re.match(r"['\"]*([^.,?!'\"]*)", words[0]) if words else None
    return said is not None and said.group(1).lower() == first_word.lower()


def _placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def _postscript(text: str, postscript_marker: str) -> bool:
    pattern = _POSTSCRIPTS.get(postscript_marker, re.escape(postscript_marker))
    return re.search(pattern, text, re.IGNORECASE) is not None


def _bullets(text: str, num_bullets: int) -> bool:
    return len(re.findall(r"^[^\S\n]*(?:\*[^*\n].*|-.*)$", text, re.MULTILINE)) == num_bullets


def _highlights(text: str, num_highlights: int) -> bool:
    single = re.findall(r"\*([^\n*]*)\*", text)
    double = re.findall(r"\*\*([^\n*]*)\*\*", text)
    return sum(bool(part.strip()) for part in single + double) >= num_highlights


def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    found = re.findall(rf"\s?{re.escape(section_spliter.strip())}\s?\d+\s?", text)
    return len(found) >= num_sections


def _json(text: str) -> bool:
    fenced = _FENCE.match(text.strip())
    try:
        json.loads(fenced.group(1) if fenced else text)
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str) -> bool:
    return any(part.strip("<> ") for part in re.findall(r"<<[^\n]+>>", text))


def _two_responses(text: str) -> bool:
    parts = _parts(text, r"\*{6}")
    return parts is not None and len(parts) == 2 and parts[0].strip() != parts[1].strip()


def _repeats(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _ends(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quoted(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _capitals(text: str, capital_frequency: int, capital_relation: str) -> bool:
    count = sum(word.isupper() for word in _TOKEN.findall(text))
    return _holds(count, capital_relation, capital_frequency)


def _language(text: str, language: str) -> bool:
    return detect(text, "reward ifeval: language:response_language") == language


INSTRUCTIONS: dict[str, Check] = {
    "keywords:existence": _keywords,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letters,
    "language:response_language": _language,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": _words,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": lambda text: any(v in text for v in _VERDICTS),
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeats,
    "startend:end_checker": _ends,
    "startend:quotation": _quoted,
    "change_case:capital_word_frequency": _capitals,
    "change_case:english_capital": lambda text: text.isupper() and share(text, "en") > 0.5,
    "change_case:english_lowercase": lambda text: text.islower() and share(text, "en") > 0.5,
    "punctuation:no_comma": lambda text: "," not in text,
}
"""By the id that the data set gives an instruction."""


def follows(text: str, instruction: str, arguments: dict[str, Any]) -> bool:
    """Whether a text follows an instruction of `INSTRUCTIONS`; an empty text follows none."""
    return bool(text.strip()) and INSTRUCTIONS[instruction](text, **arguments)
