"""What a dry run shows of the data."""

import numpy as np

from ptjax.dry_run import examples


class Letters:
    def decode(self, ids):
        return "".join(map(chr, ids))


def columns(rows, length=6):
    """Rows of sequences; capitals are trained."""
    shape = (len(rows), max(map(len, rows)), length)
    made = {"tokens": np.zeros(shape, np.int32), "valid": np.zeros(shape, bool)}
    made["mask"] = np.zeros(shape, np.float32)
    for i, row in enumerate(rows):
        for n, text in enumerate(row):
            for t, letter in enumerate(text):
                made["tokens"][i, n, t], made["valid"][i, n, t] = ord(letter), True
                made["mask"][i, n, t] = letter.isupper()
    return made


def test_one_sequence_has_no_number():
    assert examples(columns([["abCDe"], ["aB"], ["c"]]), Letters()) == [
        "example 0: ab[CD]e",
        "example 1: a[B]",
    ]


def test_all_sequences_of_an_example_that_are_there():
    assert examples(columns([["aBC", "aD", "aE"], ["bF", "bG"]]), Letters()) == [
        "example 0 (1 of 3): a[BC]",
        "example 0 (2 of 3): a[D]",
        "example 0 (3 of 3): a[E]",
        "example 1 (1 of 2): b[F]",
        "example 1 (2 of 2): b[G]",
    ]
