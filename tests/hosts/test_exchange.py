"""What processes tell each other, and which part is whose."""

import jax
import pytest

from ptjax import config, loop
from ptjax.errors import UserError
from ptjax.hosts import exchange


def test_processes_that_were_not_joined(monkeypatch, tmp_path):
    """On a TPU slice jax sees them all; it is said before a model is looked for."""
    monkeypatch.setattr(jax, "process_count", lambda: 8)
    settings = config.defaults()
    settings.model.source = "no/such/model"
    with pytest.raises(UserError, match="8 processes .* were not joined: add --distributed"):
        loop.train(settings, str(tmp_path / "run"), quiet=True)
    with pytest.raises(UserError, match="8 processes .* were not joined: add --distributed"):
        exchange.from_primary(exchange.ticket(), lambda: None)


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 5, 16])
def test_each_has_a_part_of_its_own(monkeypatch, processes, count):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    parts = []
    for index in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        parts.append([*range(count)][exchange.own(count)])
    assert sum(parts, []) == [*range(count)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
