"""What a row has said so far: its tokens, its text, and where it ends. Host side, no jax."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class Completion:
    """A prompt's continuation.

    Attributes:
      tokens: up to and with what ended it: a stop token, or the tokens of a stop string.
      logps: log-probability of each token under softmax(logits / temperature), unfiltered;
        of temperature 1 where decoding is greedy.
      finished: `stop`, or `length` where it ran out of room; of several turns `failed` where its
        environment did.
      text: without what ended it and without special tokens; empty where no tokenizer is given. Of
        several turns, the last.
      own: of several turns: which tokens the model wrote, the others are an environment's.
      turns: of several turns: the messages behind the prompt.
      reward: of several turns: what the environment gave.
      failed: of several turns: why the environment failed, and with it every reward.
    """

    tokens: tuple[int, ...]
    logps: tuple[float, ...]
    finished: Literal["stop", "length", "failed"]
    text: str = ""
    own: tuple[bool, ...] | None = None
    turns: tuple[dict[str, str], ...] = ()
    reward: float | None = None
    failed: str | None = None

    @property
    def written(self) -> int:
        """How many of its tokens the model wrote."""
        return len(self.tokens) if self.own is None else sum(self.own)


@dataclass
class Transcript:
    """Takes a row's tokens as they come, and gives its text as it becomes certain.

    Attributes:
      limit: tokens that the row may have.
      stop_ids: tokens that end it.
      stop_strings: text that ends it.
      tokenizer: makes the text; None for none.
    """

    limit: int
    stop_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    tokenizer: Any = None
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finished: Literal["stop", "length"] | None = None
    text: str = ""

    def take(self, tokens: Sequence[int], logps: Sequence[float]) -> str:
        """Adds tokens, drops those after the end, and returns the text that is new and certain.

        Bytes of an unfinished character and the beginning of a stop string wait for what follows.
        """
        for token, logp in zip(tokens, logps, strict=True):
            if self.finished is not None:
                break
            self.tokens.append(int(token))
            self.logps.append(float(logp))
            if token in self.stop_ids:
                self.finished = "stop"
            elif len(self.tokens) == self.limit:
                self.finished = "length"
        return self._read(len(tokens)) if self.tokenizer is not None else ""

    def completion(self) -> Completion:
        """The finished row."""
        finished = self.finished or "length"
        return Completion(tuple(self.tokens), tuple(self.logps), finished, self.text)

    def _read(self, new: int) -> str:
        known = len(self.text)
        text = self._decode(len(self.tokens))
        cut = _first(text, self.stop_strings, known)
        if cut is not None:
            self._shorten(cut, new)
            text = text[:cut]
        elif self.finished is None:
            text = text.rstrip(REPLACEMENT)
            text = text[: len(text) - _begun(text, self.stop_strings)]
        self.text = text if len(text) > known else self.text
        return self.text[known:]

    def _decode(self, count: int) -> str:
        stopped = self.tokens[count - 1 : count] and self.tokens[count - 1] in self.stop_ids
        return self.tokenizer.decode(
            self.tokens[: count - 1 if stopped else count],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )

    def _shorten(self, cut: int, new: int) -> None:
        """Ends the row with the token that completes the stop string found at `cut`."""
        count = len(self.tokens)
        least = max(count - new, 0)
        while count - 1 > least and _first(self._decode(count - 1), self.stop_strings, 0) == cut:
            count -= 1
        del self.tokens[count:], self.logps[count:]
        self.finished = "stop"


def _first(text: str, strings: Sequence[str], start: int) -> int | None:
    """Where the first of the strings begins, at or after `start`."""
    found = [at for at in (text.find(string, start) for string in strings) if at >= 0]
    return min(found, default=None)


def _begun(text: str, strings: Sequence[str]) -> int:
    """Length of the longest end of the text that one of the strings begins with."""
    longest = max(map(len, strings), default=0)
    for size in range(min(longest - 1, len(text)), 0, -1):
        if any(string.startswith(text[-size:]) for string in strings if len(string) > size):
            return size
    return 0
