"""Tokenises text whose content may hold the tokenizer's own control strings.

A control string in content stays text. Where content holds none, the result is that of one plain
call on the whole text. Where it does, the stretch around it, from one control token that the
template wrote to the next, is encoded with `split_special_tokens`; the tokenizer itself cuts text
at control tokens, so no joint is added that was not there but those that the caller asks for.
"""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from ptjax.data.messages import BadForm
from ptjax.errors import UserError

SPOKEN = ("<think>", "</think>", "<tool_call>", "</tool_call>", "[THINK]", "[/THINK]")
"""Marks that an assistant writes itself: no control strings in its own turns, nor in a system
message, which may ask for them."""
_TAG = re.compile(r"</?[A-Za-z_]+>")
_PRIVATE = 0x10F000


class Tokens:
    """A fast tokenizer that keeps content apart from control tokens.

    Args:
      tokenizer: a fast `transformers` tokenizer.
      scaffold: text that the chat template writes around any content: added tokens found in it
        count as control tokens, whether or not the tokenizer calls them special; so do `SPOKEN`
        ones, where there is a template.

    Attributes:
      strings: the control strings, longest first.
      ends: those of them that may end a turn.

    """

    def __init__(self, tokenizer: Any, scaffold: str = ""):
        if not getattr(tokenizer, "is_fast", False):
            raise UserError(f"the tokenizer {type(tokenizer).__name__} is not a fast one")
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        special = {token.content for token in added.values() if token.special}
        special |= set(tokenizer.all_special_tokens)
        written = {t.content for t in added.values() if t.content in scaffold} - set(SPOKEN)
        marks = {t.content for t in added.values() if scaffold and t.content in SPOKEN}
        self.ends = tuple(sorted(special | written, key=len, reverse=True))
        self.strings = tuple(sorted({*self.ends, *marks}, key=len, reverse=True))
        ids = set(tokenizer.convert_tokens_to_ids(list(self.strings)))
        self.ids = np.array(sorted(ids - {tokenizer.unk_token_id}), np.int32)
        self._strips = {t.content: (t.lstrip, t.rstrip) for t in added.values()}
        self.pattern = _any_of(self.strings)
        firsts = sorted({string[0] for string in self.strings})
        self._first = re.compile("[" + re.escape("".join(firsts)) + "]") if firsts else None
        self._to_private = {first: chr(_PRIVATE + i) for i, first in enumerate(firsts)}
        self._restore = {ord(private): first for first, private in self._to_private.items()}
        self._prefix_needed = self._prefixes_first_piece()
        self._spaced = self._puts_a_space()
        self.bos = self._bos()

    def suspicious(self, text: str, *, spoken: bool = False) -> bool:
        """Whether a control string could begin in this content.

        Args:
          text: content.
          spoken: `SPOKEN` marks are none there.

        """
        if self._first is None or not self._first.search(text):
            return False
        kept = SPOKEN if spoken else ()

        def control(match: re.Match[str]) -> str:
            tag = match.group()
            return tag if tag in self.strings and tag not in kept else ""

        return self._first.search(_TAG.sub(control, text)) is not None

    def marks(self, text: str) -> list[tuple[int, int]]:
        """Where `SPOKEN` marks that are tokens stand in a text."""
        return [(start, end) for start, end in self.places(text) if text[start:end] in SPOKEN]

    def places(self, text: str) -> list[tuple[int, int]]:
        """Where control strings stand in a text."""
        return [match.span() for match in self.pattern.finditer(text)]

    def disguise(self, text: str, *, spoken: bool, everywhere: bool) -> str:
        """Replaces the first characters of control strings by private ones, one for one.

        Args:
          text: content.
          spoken: leave `SPOKEN` marks as they are.
          everywhere: replace wherever a control string could begin, rather than where one does.

        """
        if self._first is None:
            return text
        kept = SPOKEN if spoken else ()
        characters = list(text)
        for match in self._first.finditer(text):
            at = match.start()
            if self._may_forge(text, at, kept, everywhere):
                characters[at] = self._to_private[match.group()]
        return "".join(characters)

    def _may_forge(self, text: str, at: int, kept: tuple[str, ...], everywhere: bool) -> bool:
        """Whether the character there begins a control string, or might once text is moved."""
        tag = _TAG.match(text, at)
        if tag and (tag.group() in kept or tag.group() not in self.strings):
            return False
        found = self.pattern.match(text, at)
        return found.group() not in kept if found else everywhere

    def undisguised(self, text: str) -> str:
        """Puts the characters back."""
        return text.translate(self._restore)

    def encode(
        self, texts: list[str], *, plain: bool = False
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids, and the character at which each begins, of every text.

        Args:
          texts: whole texts; nothing is added to them.
          plain: no special token is seen in them.

        """
        if not texts:
            return []
        made = self.tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=True,
            split_special_tokens=plain,
            truncation=False,
            padding=False,
            verbose=False,
        )
        return [
            (np.asarray(ids, np.int32), np.asarray([start for start, _ in offsets], np.int64))
            for ids, offsets in zip(made["input_ids"], made["offset_mapping"], strict=True)
        ]

    def encode_content(self, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """As `encode`, of texts that are content from end to end."""
        made = self.encode(texts, plain=True)
        for i, (ids, _) in enumerate(made):
            if np.isin(ids, self.ids).any():
                made[i] = self._cut(texts[i])
        return made

    def encode_around(
        self, text: str, genuine: Iterable[tuple[int, int]], cuts: Iterable[int] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `encode`, of one text whose control tokens stand at `genuine` and nowhere else.

        Args:
          text: the whole text.
          genuine: characters of its control tokens.
          cuts: characters that a token begins at, whatever it would merge with.

        """
        spans = list(genuine)
        starts = {start for start, _ in spans}
        forged = [m.start() for m in self.pattern.finditer(text) if m.start() not in starts]
        pieces, position = [], 0
        for left, right in self._stretches(text, spans, forged):
            pieces += [(position, left, False), (left, right, True)]
            position = right
        pieces.append((position, len(text), False))
        ids, offsets = [], []
        for start, end, is_content in pieces:
            edges = sorted({start, *(cut for cut in cuts if start < cut < end), end})
            for left, right in zip(edges, edges[1:], strict=False):
                follows = self._spaced if left in cuts else is_content and self._prefix_needed
                piece_ids, piece_offsets = self._piece(text[left:right], is_content, follows)
                ids.append(piece_ids)
                offsets.append(piece_offsets + left)
        return np.concatenate(ids), np.concatenate(offsets)

    def _stretches(
        self, text: str, genuine: list[tuple[int, int]], forged: list[int]
    ) -> list[tuple[int, int]]:
        """From genuine control token to genuine control token, around what is forged."""
        edges = [(0, 0), *genuine, (len(text), len(text))]
        made = []
        for (left_start, left), (right, right_end) in zip(edges, edges[1:], strict=False):
            if any(left <= at < right for at in forged):
                if self._strips.get(text[left_start:left], (False, False))[1]:
                    left += len(text[left:right]) - len(text[left:right].lstrip())
                if self._strips.get(text[right:right_end], (False, False))[0]:
                    right = left + len(text[left:right].rstrip())
                made.append((left, right))
        return made

    def _piece(self, text: str, is_content: bool, follows: bool) -> tuple[np.ndarray, np.ndarray]:
        """A part of a text; no space may be put before one that follows something."""
        one = self.encode_content if is_content else self.encode
        for before in ("\n", "a") if follows else ():
            known, _ = one([before])[0]
            ids, offsets = one([before + text])[0]
            if np.array_equal(ids[: len(known)], known):
                return ids[len(known) :], offsets[len(known) :] - 1
        return one([text])[0]

    def _cut(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Encodes control strings that are tokens even to `split_special_tokens` in two halves."""
        cuts = [0, *(match.start() + 1 for match in self.pattern.finditer(text)), len(text)]
        made = [
            (ids, offsets + start)
            for start, end in zip(cuts, cuts[1:], strict=False)
            if start < end
            for ids, offsets in self.encode([text[start:end]], plain=True)
        ]
        ids, offsets = (np.concatenate(part) for part in zip(*made, strict=True))
        if np.isin(ids, self.ids).any():
            raise BadForm("holds a control string that the tokenizer cannot write as text")
        return ids, offsets

    def _prefixes_first_piece(self) -> bool:
        """Whether text at the very beginning is encoded otherwise than after a control token."""
        if not self.strings:
            return False
        alone, after = (ids for ids, _ in self.encode(["a", self.strings[0] + "a"]))
        return not np.array_equal(alone, after[1:])

    def _puts_a_space(self) -> bool:
        """Whether text alone is encoded otherwise than inside a text."""
        newline, alone, inside = (ids for ids, _ in self.encode(["\n", "a", "\na"]))
        return not np.array_equal(alone, inside[len(newline) :])

    def _bos(self) -> list[int]:
        """The token that the tokenizer puts before any text, if it does."""
        bos = self.tokenizer.bos_token_id
        ids = self.tokenizer("a")["input_ids"]
        return [bos] if bos is not None and ids and ids[0] == bos else []


def _any_of(strings: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, strings)) or "(?!)")
