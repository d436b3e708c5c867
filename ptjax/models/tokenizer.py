"""Tokenizers: from a folder, a GGUF file or the hub; to a folder that AutoTokenizer reads."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ptjax.errors import UserError
from ptjax.models.gguf_tokenizer import gguf_tokenizer
from ptjax.models.hub import resolve_source
from ptjax.models.quiet import auto_tokenizer_class

__all__ = ["add_special_tokens", "gguf_tokenizer", "load_tokenizer", "save_tokenizer"]


def load_tokenizer(source: str | os.PathLike[str], *, chat_template: str | None = None) -> Any:
    """Loads a transformers fast tokenizer with its chat template; no code of the source runs.

    Args:
      source: a local folder, a .gguf file, a registered name or a hub id.
      chat_template: replaces the source's template; Jinja text, or the path of a .jinja file.

    Raises:
      UserError: where the source, its tokenizer or the template file is not there or damaged.

    """
    path = resolve_source(source)
    if path.is_file():
        tokenizer = gguf_tokenizer(path)
    else:
        tokenizer = _from_folder(path)
    if chat_template is not None:
        tokenizer.chat_template = _template_text(chat_template)
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: str | os.PathLike[str]) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja.

    Args:
      tokenizer: a transformers fast tokenizer.
      folder: made where it does not exist.

    Raises:
      UserError: where the folder cannot be written.

    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(str(folder))
    except OSError as error:
        raise UserError(f"{folder}: cannot write the tokenizer: {error.strerror}") from error


def add_special_tokens(tokenizer: Any, tokens: Sequence[str]) -> list[int]:
    """Adds control tokens; returns the ids of those that are new, in the order given.

    Args:
      tokenizer: a transformers fast tokenizer, changed in place.
      tokens: their text; one that the tokenizer knows keeps its id and becomes special.

    """
    from tokenizers import AddedToken

    before = tokenizer.get_vocab()
    tokenizer.add_tokens(
        [AddedToken(token, normalized=False, special=True) for token in tokens], special_tokens=True
    )
    after = tokenizer.get_vocab()
    return [after[token] for token in dict.fromkeys(tokens) if token not in before]


def _from_folder(folder: Path) -> Any:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise UserError(f"{folder}: it has no tokenizer (tokenizer.json or tokenizer.model)")
    try:
        tokenizer = auto_tokenizer_class().from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # tokenizers raises Exception itself for a damaged file
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise UserError(f"{folder}: its tokenizer cannot be loaded: {reason}") from error
    if not tokenizer.is_fast:
        raise UserError(f"{folder}: its tokenizer has no fast version (tokenizer.json)")
    return tokenizer


def _template_text(template: str) -> str:
    if "{" in template or not template.endswith(".jinja"):
        return template
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"chat template {template}: cannot be read: {error}") from error
