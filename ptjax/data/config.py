"""What `config.data` may say: every key, its default, and what is refused."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ptjax.data.kinds import FORMATS
from ptjax.errors import UserError, check_keys, did_you_mean

TRAIN_ON = ("assistant", "last", "all")
TRUNCATE = ("end", "start", "split", "drop", "error")
_NUMBERS = {"weight", "epochs", "loss_weight", "limit"}


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source of rows."""

    path: str
    """A file, a glob, a folder of `datasets`' `save_to_disk`, or `hf:org/name[/config]`."""
    format: str | None = None
    """One of `FORMATS`; None: seen from the columns."""
    columns: tuple[tuple[str, str], ...] = ()
    """(ours, theirs) pairs: which of the file's columns stands for which of ours."""
    weight: float | None = None
    """Share of the mixture; None for all sources: each row as often as any other."""
    epochs: float | None = None
    """Passes over this source in the whole run; None: no end."""
    loss_weight: float = 1.0
    """Weight of this source's sequences in the loss."""
    split: str | None = None
    """Split of a hub data set; None: "train"."""
    limit: int | None = None
    """Only the first rows."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The whole of `config.data`."""

    sources: tuple[SourceConfig, ...]
    validation: float | tuple[SourceConfig, ...] | None = None
    """Fraction of the rows to hold out, or sources of their own."""
    train_on: str = "assistant"
    """Which tokens of a conversation are trained: one of `TRAIN_ON`."""
    chat_template: str | None = None
    """A Jinja template or the path of one; None: the tokenizer's."""
    max_length: int = 1024
    """Longest sequence, in tokens."""
    truncate: str = "end"
    """What to do with a longer one: cut its end or start, split it, drop it, or stop. The sides of
    an example are cut alike."""
    on_empty: str = "error"
    """A sequence with nothing to train on: stop, or drop and count it."""
    on_bad_line: str = "error"
    """A row that cannot be read or converted: stop, or skip and count it."""
    packing: bool = True
    """Several examples in one row, each blind to the others."""
    prompts_once: bool = True
    """A packed row holds an example's prompt once, and all of its completions behind it."""
    tokens_per_batch: int | None = 4096
    """Tokens of the packed rows of one optimizer step, padding included."""
    row_length: int | None = None
    """Tokens of a packed row; None: max_length, or what an example of several sequences needs."""
    batch_size: int | None = None
    """Examples of one optimizer step; takes the place of tokens_per_batch."""
    buckets: tuple[int, ...] | None = None
    """Lengths to pad to without packing; None: powers of two from 64 to max_length."""
    shuffle: bool = True
    """Another order in each epoch, a function of the seed; False: the files' order."""
    workers: int = 0
    """Processes that encode and collate; 0: this one."""
    cache: str | None = None
    """Folder that keeps encoded sources between runs; None: a temporary one."""


def data_config(given: Any) -> DataConfig:
    """Reads `config.data` (a mapping, ConfigDict included), refusing what makes no sense.

    Raises:
      UserError: an unknown key, a missing path, a value out of its range.

    """
    if isinstance(given, DataConfig):
        return given
    values = _plain(given)
    if not isinstance(values, dict):
        raise UserError(f"config.data: a mapping is expected, not {type(given).__name__}")
    check_keys(values, _names(DataConfig), "config.data")
    values["sources"] = _sources(values.get("sources"), "config.data.sources")
    held = values.get("validation")
    if isinstance(held, list | tuple) and len(held) == 1 and isinstance(held[0], int | float):
        values["validation"] = held[0]  # a command line reads a list where the default is one
    elif isinstance(held, list | tuple):
        values["validation"] = _sources(held, "config.data.validation")
    if values.get("buckets") is not None:
        values["buckets"] = _buckets(values["buckets"])
    defaults = {field.name: field.default for field in dataclasses.fields(DataConfig)}
    for key, default in defaults.items():
        may_be_none = key == "tokens_per_batch" or not isinstance(default, bool | str | int)
        if values.get(key, default) is None and not may_be_none:
            raise UserError(f"config.data.{key} is None; its default is {default!r}")
    config = DataConfig(**values)
    _check(config)
    return config


def _check(config: DataConfig) -> None:
    """Refuses values out of range, naming the key."""
    for key, options in {
        "train_on": TRAIN_ON,
        "truncate": TRUNCATE,
        "on_empty": ("error", "drop"),
        "on_bad_line": ("error", "skip"),
    }.items():
        _one_of(f"config.data.{key}", getattr(config, key), options)
    for key in ("max_length", "tokens_per_batch", "row_length", "batch_size"):
        value = getattr(config, key)
        if value is not None and (type(value) is not int or value < 1):
            raise UserError(f"config.data.{key} = {value!r}: a positive whole number is expected")
    if config.max_length < 2:
        raise UserError(
            "config.data.max_length: at least 2, a sequence's first token is not trained"
        )
    held = config.validation
    if isinstance(held, int | float) and not 0 < held < 1:
        raise UserError(f"config.data.validation = {held}: a fraction lies between 0 and 1")
    if not config.packing and config.batch_size is None:
        raise UserError(
            "config.data.packing = False needs config.data.batch_size (examples a step)"
        )
    if config.batch_size is None and config.tokens_per_batch is None:
        raise UserError("config.data: give tokens_per_batch or batch_size")
    if config.packing and config.row_length and config.row_length < config.max_length:
        raise UserError(
            f"config.data.row_length = {config.row_length} is shorter than max_length = "
            f"{config.max_length}: a longest example would fit in no row"
        )
    weights = [source.weight for source in config.sources]
    if any(weight is None for weight in weights) and any(weight is not None for weight in weights):
        raise UserError("config.data.sources: give a weight to every source or to none")


def _buckets(given: Any) -> tuple[int, ...]:
    """Reads the lengths to pad to, shortest first."""
    listed = isinstance(given, list | tuple) and given
    if not listed or not all(type(length) is int and length > 0 for length in given):
        raise UserError(f"config.data.buckets = {given!r}: lengths such as [64, 128] are expected")
    return tuple(sorted(given))


def _sources(given: Any, where: str) -> tuple[SourceConfig, ...]:
    """Reads a list of sources; a lone string or mapping counts as a list of one."""
    if isinstance(given, str | Mapping):
        given = [given]
    if not given:
        raise UserError(f"{where}: no source given; for example [dict(path='train.jsonl')]")
    return tuple(_source(source, f"{where}[{i}]") for i, source in enumerate(given))


def _source(given: Any, where: str) -> SourceConfig:
    """Reads one source."""
    if isinstance(given, SourceConfig):
        return given
    if not isinstance(given, str | Mapping):
        raise UserError(f"{where} = {given!r}: a path, or a mapping with one, is expected")
    values: dict[str, Any] = {"path": given} if isinstance(given, str) else dict(given)
    check_keys(values, _names(SourceConfig), where)
    if not values.get("path"):
        raise UserError(f"{where}: path is missing")
    columns = values.get("columns") or ()
    if columns and not isinstance(columns, Mapping | tuple):
        raise UserError(f"{where}.columns = {columns!r}: a mapping {{ours: theirs}} is expected")
    values["columns"] = tuple(sorted(dict(columns).items()))
    if values.get("loss_weight") is None:
        values.pop("loss_weight", None)
    for key in _NUMBERS & values.keys():
        values[key] = _number(f"{where}.{key}", values[key], whole=key == "limit")
    source = SourceConfig(**values)
    if source.format is not None:
        _one_of(f"{where}.format", source.format, FORMATS)
    for key in ("weight", "epochs", "limit"):
        value = getattr(source, key)
        if value is not None and not value > 0:
            raise UserError(f"{where}.{key} = {value}: a positive number is expected")
    if not source.loss_weight >= 0:
        raise UserError(f"{where}.loss_weight = {source.loss_weight}: it cannot be negative")
    return source


def _number(where: str, value: Any, *, whole: bool) -> float | int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value if whole or value is None else float(value)
    if whole or not isinstance(value, float):
        raise UserError(f"{where} = {value!r}: a {'whole ' if whole else ''}number is expected")
    return value


def _one_of(where: str, value: Any, options: tuple[str, ...]) -> None:
    if value not in options:
        raise UserError(f"{where} = {value!r}{did_you_mean(str(value), options)}")


def _names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _plain(value: Any) -> Any:
    """ConfigDicts and other mappings to dicts, lists kept, all the way down."""
    if isinstance(value, Mapping) or hasattr(value, "to_dict"):
        to_dict = getattr(value, "to_dict", lambda: value)
        return {key: _plain(item) for key, item in to_dict().items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
