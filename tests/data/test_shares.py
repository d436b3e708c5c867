"""Processes encode a share of the rows each, and read what one that encodes all would read."""

import json
from pathlib import Path

import pytest

from tests.data import shares
from tests.two import told_by

PROCESSES = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shares")
    shares.write(folder)
    return folder


@pytest.fixture(scope="module")
def together(folder):
    script = Path(shares.__file__)
    return [json.loads(o) for o in told_by(script, PROCESSES, folder, processes=PROCESSES)]


@pytest.fixture(scope="module")
def alone(folder):
    told = [shares.told(folder, index, PROCESSES) for index in range(PROCESSES)]
    return json.loads(json.dumps(told))


@pytest.mark.parametrize("case", shares.CASES)
def test_each_encodes_its_share_and_all_is_as_of_one(together, alone, case):
    counts = [one[case].pop(0) for one in together]
    (count,) = {one[case].pop(0) for one in alone}
    if case == "bad":  # each stops at its first
        assert max(counts) <= 64 and count == 64
    else:
        assert sum(counts) == count and max(counts) - min(counts) <= 1
    assert [one[case] for one in together] == [one[case] for one in alone]
    refused = {"bad": "bad.jsonl, line 41: ", "empty": "empty.jsonl, line 21: nothing to train on"}
    assert (len(alone[0][case]) == 1) == (case in refused)
    if case in refused:
        assert refused[case] in alone[0][case][0]
