"""What counts as the head of a table."""

import pytest

from ptjax.flops import output_names
from ptjax.models.spec import Param

EMBED = Param("vocab embed")
INNER = {"up": Param("embed -> mlp"), "norm": Param("embed")}


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ({"embed": EMBED, **INNER}, ["embed"]),
        ({"embed": EMBED, **INNER, "head": Param("embed -> vocab")}, ["head"]),
        (
            {
                "embed": EMBED,
                "out.kernel": Param("16 -> vocab"),
                "out.kernel.lora_a": Param("16 -> rank"),
                "out.kernel.lora_b": Param("rank -> vocab"),
            },
            ["out.kernel"],
        ),
    ],
)
def test_the_head_is_what_gives_the_vocabulary(rows, names):
    assert output_names(rows) == names
