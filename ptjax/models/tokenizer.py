"""Tokenizers: from a folder, a GGUF file or the hub; to a folder that AutoTokenizer reads."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ptjax.errors import UserError
from ptjax.models.gguf_tokenizer import gguf_tokenizer
from ptjax.models.hub import resolve_source
from ptjax.models.quiet import auto_tokenizer_class

__all__ = ["add_special_tokens", "gguf_tokenizer", "load_tokenizer", "save_tokenizer"]

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)


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
        tokenizer.chat_template = template_text(chat_template)
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: str | os.PathLike[str]) -> None:
    """Writes a folder that AutoTokenizer reads; an unchanged tokenizer's files are copied as bytes.

    Args:
      tokenizer: a transformers fast tokenizer.
      folder: made where it does not exist.

    Raises:
      UserError: where the folder cannot be written.
    """
    folder = Path(folder)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    origin = Path(tokenizer.name_or_path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if tokenizer.name_or_path and origin.is_dir() and _same(tokenizer, _from_folder(origin)):
            for path in origin.iterdir():
                if path.name in _FILES and path.parent.resolve() != folder.resolve():
                    shutil.copyfile(path, folder / path.name)
            return
        tokenizer.save_pretrained(str(folder))
        _make_portable(folder / "tokenizer_config.json")
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


def _same(one: Any, other: Any) -> bool:
    """Whether two tokenizers give the same ids, special tokens and chats."""
    parts = ("chat_template", "special_tokens_map", "model_max_length")
    return one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str() and all(
        getattr(one, part) == getattr(other, part) for part in parts
    )


def _make_portable(path: Path) -> None:
    """Takes out what only transformers 5 understands, and how this process loaded it."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("backend", "is_local", "local_files_only"):
        config.pop(key, None)
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def template_text(given: str) -> str:
    """A chat template from its Jinja text, or from the path of a file that holds it.

    Raises:
      UserError: it is neither.
    """
    if "{" in given and "}" in given:
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"config.data.chat_template: no such file {given!r}, nor is it a template"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"chat template {given}: cannot be read: {error}") from error
