"""A fast tokenizer from a GGUF file's metadata: byte-level BPE or SentencePiece's BPE.

A GGUF holds tokens, scores or merges, and the *name* of the text splitter
(`tokenizer.ggml.pre`); the splitters themselves are llama.cpp's, and stand in `_SPLITS`.
"""

import os
import re
from typing import Any

import numpy as np

from ptjax.errors import UserError, did_you_mean
from ptjax.models.gguf_file import GGUFFile, read_gguf

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_META = "\u2581"  # what SentencePiece writes for a space
_SPECIAL = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
_DIGITS, _GPT2 = "digits", "gpt2"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _TAIL
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _TAIL
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    + _TAIL
)
_SPLITS = {
    **dict.fromkeys(("gpt-2", "mpt", "olmo", "jais", "trillion"), _GPT2),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2", "smaug-bpe", "dbrx"),
        _LLAMA3,
    ),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _QWEN2),
    "tekken": _TEKKEN,
}
# A piece that is a token as a whole is taken as it is, whatever the merges would do.
_WHOLE = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2", "tekken")


def gguf_tokenizer(path: str | os.PathLike[str]) -> Any:
    """Builds the tokenizer that a GGUF file describes, with its special tokens and chat template.

    Args:
      path: a .gguf file; one that holds a vocabulary alone will do.

    Returns:
      A transformers PreTrainedTokenizerFast.

    Raises:
      UserError: for a damaged file, or a tokenizer model or splitter that is not known.
    """
    file = read_gguf(path)
    meta = file.metadata
    model = meta.get("tokenizer.ggml.model")
    tokens, kinds = _vocabulary(file)
    if model == "gpt2":
        backend = _byte_level(file, tokens)
    elif model == "llama":
        backend, kinds = _sentencepiece(file, tokens, kinds)
    else:
        raise UserError(f"{path}: tokenizer model {model!r} is not supported (gpt2 and llama are)")
    return _wrap(file, backend, tokens, kinds, sentencepiece=model == "llama")


def _vocabulary(file: GGUFFile) -> tuple[list[str], list[int]]:
    """Tokens and their types, without the made-up ones that pad the vocabulary's end."""
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise UserError(f"{file.path}: it has no tokens (tokenizer.ggml.tokens)")
    kinds = _numbers(file, "token_type")
    kinds = [_NORMAL] * len(tokens) if kinds is None else [int(kind) for kind in kinds]
    if len(kinds) != len(tokens):
        raise UserError(f"{file.path}: {len(tokens)} tokens, {len(kinds)} token types")
    end = len(tokens)
    while end and tokens[end - 1] == f"[PAD{end - 1}]":
        end -= 1
    return tokens[:end], kinds[:end]


def _numbers(file: GGUFFile, key: str) -> list[Any] | None:
    array = file.metadata.get(f"tokenizer.ggml.{key}")
    if array is not None and not isinstance(array, np.ndarray):
        raise UserError(f"{file.path}: 'tokenizer.ggml.{key}' is no array of numbers")
    return None if array is None else array.tolist()


def _byte_level(file: GGUFFile, tokens: list[str]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = file.metadata.get("tokenizer.ggml.pre", "")
    if pre not in _SPLITS:
        hint = did_you_mean(str(pre), _SPLITS)
        raise UserError(f"{file.path}: text splitter {pre!r} is not known{hint}")
    split = _SPLITS[pre]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = _given_merges(file, vocab)
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre in _WHOLE))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split in (_DIGITS, _GPT2))
    first = {
        _GPT2: [],
        _DIGITS: [pre_tokenizers.Digits(individual_digits=True)],
    }.get(split)
    if first is None:
        first = [pre_tokenizers.Split(Regex(split), behavior="isolated")]
    backend.pre_tokenizer = pre_tokenizers.Sequence([*first, level])
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(file: GGUFFile, tokens: list[str], kinds: list[int]) -> tuple[Any, list[int]]:
    from tokenizers import Tokenizer, decoders, models, normalizers

    meta = file.metadata
    gemma = str(meta.get("general.architecture")).startswith("gemma")
    if gemma:  # Runs of spaces are stored as they read, but merged as SentencePiece writes them.
        runs = [bool(re.fullmatch(" {2,}", token)) for token in tokens]
        kinds = [_NORMAL if run else kind for run, kind in zip(runs, kinds, strict=True)]
        tokens = [_META * len(t) if run else t for run, t in zip(runs, tokens, strict=True)]
    vocab = {token: i for i, token in enumerate(tokens)}
    if "tokenizer.ggml.merges" in meta:
        merges = _given_merges(file, vocab)
    else:
        merges = _implied_merges(file, vocab, kinds, by_score=not gemma)
    unknown = meta.get("tokenizer.ggml.unknown_token_id", 0)
    backend = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=merges,
            unk_token=_token(file, tokens, unknown),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = bool(meta.get("tokenizer.ggml.add_space_prefix", not gemma))
    first = [normalizers.Prepend(_META)] if prefix else []
    last = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", _META)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_META, " "), decoders.ByteFallback(), decoders.Fuse(), *last]
    )
    return backend, kinds


def _given_merges(file: GGUFFile, vocab: dict[str, int]) -> list[tuple[str, str]]:
    lines = file.metadata.get("tokenizer.ggml.merges")
    if not isinstance(lines, list):
        raise UserError(f"{file.path}: it has no merges (tokenizer.ggml.merges)")
    merges = []
    for line in lines:
        left, _, right = line.partition(" ")
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise UserError(f"{file.path}: merge {line!r} is not made of tokens")
        merges.append((left, right))
    return merges


def _implied_merges(
    file: GGUFFile, vocab: dict[str, int], kinds: list[int], *, by_score: bool
) -> list[tuple[str, str]]:
    """SentencePiece joins the pair whose joint token scores best; earlier tokens win ties."""
    ranks = [0.0] * len(kinds)
    if by_score:
        ranks = [-float(score) for score in _numbers(file, "scores") or ()]
        if len(ranks) < len(kinds):
            raise UserError(f"{file.path}: it has neither merges nor a score for each token")
    ranked = []
    for token, i in vocab.items():
        if kinds[i] in (_NORMAL, _USER_DEFINED):
            rank = (ranks[i], i)
            for cut in range(1, len(token)):
                left, right = token[:cut], token[cut:]
                if left in vocab and right in vocab:
                    ranked.append((rank, vocab[left], vocab[right], left, right))
    return [(left, right) for *_, left, right in sorted(ranked)]


def _token(file: GGUFFile, tokens: list[str], token_id: Any) -> str:
    if not isinstance(token_id, int) or not 0 <= token_id < len(tokens):
        raise UserError(f"{file.path}: special token id {token_id} is not in the vocabulary")
    return tokens[token_id]


def _wrap(
    file: GGUFFile, backend: Any, tokens: list[str], kinds: list[int], *, sentencepiece: bool
) -> Any:
    """Adds special tokens, what stands before and after every text, and the chat template."""
    from tokenizers import AddedToken

    from ptjax.models.quiet import fast_tokenizer_class

    meta = file.metadata
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        added = [
            AddedToken(token, normalized=False, special=special)
            for token, own in zip(tokens, kinds, strict=True)
            if own == kind and token
        ]
        (backend.add_special_tokens if special else backend.add_tokens)(added)
    named = {}
    for theirs, ours in _SPECIAL.items():
        if (token_id := meta.get(f"tokenizer.ggml.{theirs}_token_id")) is not None:
            named[ours] = _token(file, tokens, token_id)
    default = sentencepiece or meta.get("tokenizer.ggml.pre") in _WHOLE
    ends = {
        "add_bos_token": meta.get("tokenizer.ggml.add_bos_token", default) and "bos_token" in named,
        "add_eos_token": meta.get("tokenizer.ggml.add_eos_token", False) and "eos_token" in named,
    }
    tokenizer = fast_tokenizer_class()(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        **named,
        **{key: True for key, value in ends.items() if value},
    )
    arch = meta.get("general.architecture")
    if isinstance(length := meta.get(f"{arch}.context_length"), int):
        tokenizer.model_max_length = length
    if isinstance(template := meta.get("tokenizer.chat_template"), str):
        tokenizer.chat_template = template
    return tokenizer
