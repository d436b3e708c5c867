"""Every prompt of a source, and a digest of them."""

import hashlib
import json

from ptjax.data.config import SourceConfig
from ptjax.data.formats import recognise
from ptjax.data.kinds import KINDS
from ptjax.data.messages import BadForm
from ptjax.data.prompts import Prompt, read_prompt
from ptjax.data.rows import BadRow
from ptjax.data.sources import open_source
from ptjax.errors import UserError, did_you_mean


def read_prompts(source: SourceConfig) -> list[Prompt]:
    """Every prompt of a source, in its order.

    Raises:
      UserError: the source cannot be read, or a row of it has no prompt.
    """
    kind = KINDS["prompts"]
    if source.format is not None and source.format not in kind.forms:
        hint = did_you_mean(source.format, kind.forms)
        raise UserError(f"{source.path}: format {source.format!r} is none of prompts{hint}")
    rows = open_source(source)
    prompts = []
    for i, row in enumerate(rows.read(0, len(rows))):
        if isinstance(row, BadRow):
            raise UserError(str(row))
        try:
            form, named = recognise(row, kind, form=source.format, columns=dict(source.columns))
            prompts.append(read_prompt(named, form, rows.where(i)))
        except BadForm as error:
            raise UserError(str(BadRow(rows.where(i), error.reason, error.detail))) from error
    return prompts


def digest(prompts: list[Prompt]) -> str:
    """SHA-256 of what the prompts say, wherever they lie."""
    whole = hashlib.sha256()
    for prompt in prompts:
        whole.update(json.dumps(prompt[1:], sort_keys=True, default=str).encode() + b"\n")
    return whole.hexdigest()
