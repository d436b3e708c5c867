"""What a refused program needs is read from the compiler's messages."""

import pytest

from ptjax.plan.compiled import needed

GIB = 2**30


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (20.50G) exceeds available HBM (15.75G).",
            20.5 * GIB,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 768.00M of 512.00M "
            "hbm. Exceeded hbm capacity by 256.00M.",
            0.75 * GIB,
        ),
        ("Ran out of memory in memory space vmem. Used 20.00M of 16.00M vmem.", None),
        ("INTERNAL: Mosaic failed to compile TPU kernel", None),
    ],
)
def test_a_refusal_says_what_the_program_needs(message, wanted):
    assert needed(message) == wanted
