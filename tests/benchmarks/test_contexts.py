"""The longest context is found by few compilations, whatever the model of the memory says."""

import pytest

from benchmarks.tpu.contexts import host_bytes, search, state_bytes, token_bytes

ROOM = 10_000_000


def needs(context):
    """A head's memory, and a layer's, which is more from 40,000 tokens on."""
    return max(5_000_000 + 50 * context, 3_000_000 + 100 * context)


@pytest.mark.parametrize("first", [10_000, 66_000, 300_000])
@pytest.mark.parametrize("token", [50, 400])
def test_both_sides_of_the_limit_a_sixth_apart(first, token):
    asked = []

    def need(context):
        asked.append(context)
        return needs(context)

    found = search(need, ROOM, first, token)
    assert needs(found.accepted) == found.need <= ROOM < needs(found.refused)
    assert found.refused - found.accepted <= found.refused / 6
    assert len(asked) == len(set(asked)) <= 6


def test_what_is_proposed_is_of_the_models_size():
    assert state_bytes("llama3.1-8b", 16) == pytest.approx(8.03e9, rel=1e-3)
    assert host_bytes("llama3.1-8b", "dpo", 1) == 2 * 2 * 4096 * 32
    whole, chunks = (token_bytes("llama3.1-8b", "grpo", whole=one) for one in (True, False))
    assert whole - chunks == 4 * 4 * 128256
