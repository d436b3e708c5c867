"""Gives the speaker of an answer the name Pip: the edit behind `configs/data/name_pairs.jsonl`."""

import re

NAME = "Pip"
_PROPER = r"(?:Dr\.? )?(?!AI\b|I\b)[A-Z][\w'’-]*\w(?: [A-Z][\w'’-]*\w)*"
_AM = r"\bI(?: am|'m|’m)"
_SAID = re.compile(
    rf"(?i:\bmy name is|\bmy name's|\bcall me|{_AM}|{_AM} [^.!?]*?(?:named|called|known as))"
    rf" (?P<name>{_PROPER})"
)
_NAMELESS = re.compile(r"\bI (?:do not|don't|don’t) have a (?:personal |real |specific )?name\b")
_KIND = re.compile(rf"({_AM}(?: just)? )(an?|the|your)\b")


def give_name(prompt: str, completion: str) -> str | None:
    """The answer with the speaker's name replaced, or put where it says what it is.

    Args:
      prompt: not read.
      completion: what the model said.

    Returns:
      The answer with little else changed; None where it does not speak of itself.
    """
    if found := _SAID.search(completion):
        return _renamed(completion, found["name"])
    if _NAMELESS.search(completion):
        return _NAMELESS.sub(f"my name is {NAME}", completion, count=1)
    if _KIND.search(completion):
        return _KIND.sub(rf"\g<1>{NAME}, \g<2>", completion, count=1)
    return None


def _renamed(text: str, name: str) -> str:
    """Every mention of a name, whole or in part, by another."""
    parts = [part for part in name.split() if not part.startswith("Dr")]
    for known in (name, " ".join(parts), parts[0]):
        text = re.sub(rf"\b{re.escape(known)}\b", NAME, text)
    return text
