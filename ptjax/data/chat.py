"""Canonical rows to token ids and trained masks."""

import hashlib
from typing import Any, NamedTuple

import numpy as np

from ptjax.data.control import Tokens
from ptjax.data.formats import Example
from ptjax.data.messages import BadForm
from ptjax.data.template import Template, read_template
from ptjax.data.turns import Sequence, split_turns


class Encoded(NamedTuple):
    """One sequence."""

    tokens: np.ndarray
    """int32 [length]."""
    mask: np.ndarray
    """bool [length]: trained tokens; never the first."""
    prompt: int = 0
    """Tokens before what is trained, or before the completion."""


class Chat:
    """A tokenizer with its template: turns canonical rows into tokens.

    Args:
      tokenizer: a fast `transformers` tokenizer.
      template: a Jinja template, the path of one, or None for the tokenizer's own.
      train_on: "assistant" (every assistant turn), "last" (the last one), "all" (every token).

    Raises:
      UserError: the tokenizer is not a fast one; a template that does not compile.

    """

    def __init__(self, tokenizer: Any, template: str | None = None, *, train_on: str = "assistant"):
        self.tokenizer = tokenizer
        self.train_on = train_on
        self._given = template
        self._template: Template | None = None
        self._tokens: Tokens | None = None

    @property
    def template(self) -> Template:
        """The chat template; read when first needed, for text needs none."""
        if self._template is None:
            self._template = Template(self.tokenizer, self._given)
        return self._template

    @property
    def tokens(self) -> Tokens:
        """The tokenizer for rows without a template."""
        if self._tokens is None:
            self._tokens = Tokens(self.tokenizer)
        return self._tokens

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template, given or the tokenizer's."""
        return self._given is not None or bool(getattr(self.tokenizer, "chat_template", None))

    def fingerprint(self) -> list[Any]:
        """JSON-able; another value whenever the same row may be encoded otherwise."""
        backend = self.tokenizer.backend_tokenizer.to_str()
        digest = hashlib.sha256(backend.encode()).hexdigest()
        special = sorted(self.tokenizer.special_tokens_map.items())
        given = None
        if self.has_template:
            given = read_template(self.tokenizer, self._given)
        return [digest, repr(special), given, self.train_on]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_template": None, "_tokens": None}

    def encode(self, examples: list[Example]) -> list[list[Encoded] | BadForm]:
        """Every example's sequences, or what is wrong with it; none: nothing to train on."""
        results: list[list[Encoded] | BadForm] = [[] for _ in examples]
        sequences: list[Sequence] = []
        owners: list[int] = []
        texts: list[tuple[int, str, str]] = []
        for i, example in enumerate(examples):
            try:
                if example.text is not None:
                    texts.append((i, "", example.text))
                elif isinstance(example.prompt, str) and isinstance(example.completion, str):
                    texts.append((i, example.prompt, example.completion))
                else:
                    found = self._sequences(example)
                    sequences += found
                    owners += [i] * len(found)
            except BadForm as error:
                results[i] = error
        self._encode_sequences(sequences, owners, results)
        self._encode_texts(texts, results)
        return results

    def _sequences(self, example: Example) -> list[Sequence]:
        if example.messages is not None:
            messages, first = example.messages, 0
        else:
            assert isinstance(example.prompt, list) and isinstance(example.completion, list)
            messages, first = example.prompt + example.completion, len(example.prompt)
        return split_turns(
            self.template, messages, example.tools, train_on=self.train_on, first=first
        )

    def _encode_sequences(
        self, sequences: list[Sequence], owners: list[int], results: list
    ) -> None:
        plain = [sequence.genuine is None for sequence in sequences]
        texts = [
            sequence.text for sequence, is_plain in zip(sequences, plain, strict=True) if is_plain
        ]
        made = iter(self.template.tokens.encode(texts) if texts else [])
        for owner, sequence in zip(owners, sequences, strict=True):
            if isinstance(results[owner], BadForm):
                continue
            try:
                if sequence.genuine is None:
                    ids, starts = self._apart(sequence, *next(made))
                else:
                    around = self.template.tokens.encode_around(sequence.text, sequence.genuine)
                    ids, starts = self._apart(sequence, *around)
            except BadForm as error:
                results[owner] = error
                continue
            mask = np.zeros(len(ids), bool)
            for start, end in sequence.spans:
                mask |= (starts >= start) & (starts < end)
            if not sequence.ends and mask.any():
                ids, mask = self._with_eos(ids), np.append(mask, True)
            results[owner].append(_encoded(ids, mask, int(mask.argmax())))

    def _apart(
        self, sequence: Sequence, ids: np.ndarray, starts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encodes a turn apart from its prompt where a token would reach from one to the other.

        The prompt's ids are then those it has when it is sampled from, and all of the turn is
        trained.
        """
        cuts = [start for start in sequence.starts if start not in starts]
        if not cuts:
            return ids, starts
        tokens = self.template.tokens
        genuine = tokens.places(sequence.text) if sequence.genuine is None else sequence.genuine
        return tokens.encode_around(sequence.text, genuine, cuts)

    def _encode_texts(self, texts: list[tuple[int, str, str]], results: list) -> None:
        """Text alone, and prompts with completions: each part by itself, as it would be sampled."""
        if not texts:
            return
        try:
            made = self.tokens.encode_content([part for _, *parts in texts for part in parts])
        except BadForm:
            made = None
        for n, (owner, *parts) in enumerate(texts):
            try:
                pair = made[2 * n : 2 * n + 2] if made else self.tokens.encode_content(parts)
            except BadForm as error:
                results[owner] = error
                continue
            (prompt, _), (completion, _) = pair
            if not len(completion):
                continue
            ids = np.concatenate([np.asarray(self.tokens.bos, np.int32), prompt, completion])
            whole = self.train_on == "all" or not len(prompt)
            mask = np.arange(len(ids)) >= (0 if whole else len(ids) - len(completion))
            before = len(ids) - len(completion)
            results[owner].append(_encoded(self._with_eos(ids), np.append(mask, True), before))

    def _with_eos(self, ids: np.ndarray) -> np.ndarray:
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise BadForm("the tokenizer has no end-of-sequence token")
        return np.append(ids, np.int32(eos))


def _encoded(ids: np.ndarray, mask: np.ndarray, prompt: int) -> Encoded:
    mask[:1] = False
    return Encoded(ids.astype(np.int32), mask, prompt)
