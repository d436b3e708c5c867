"""Imports transformers without its notice that PyTorch is missing; that is as it should be here."""

import os
from typing import Any

_ADVICE = "TRANSFORMERS_NO_ADVISORY_WARNINGS"


def auto_tokenizer_class() -> Any:
    """transformers.AutoTokenizer."""
    return _transformers().AutoTokenizer


def fast_tokenizer_class() -> Any:
    """transformers.PreTrainedTokenizerFast."""
    return _transformers().PreTrainedTokenizerFast


def _transformers() -> Any:
    before = os.environ.get(_ADVICE)
    os.environ[_ADVICE] = "1"
    try:
        import transformers
    finally:
        if before is None:
            del os.environ[_ADVICE]
        else:
            os.environ[_ADVICE] = before
    return transformers


def auto_config_class() -> Any:
    """transformers.AutoConfig."""
    return _transformers().AutoConfig
