"""The bounds of the runs that must fit can fail."""

import copy

import pytest

from benchmarks.tpu.facts import FACTS, one_copy, report

GIB = 2**30


def program(name, *, arguments, temporaries, cache=0):
    memory = {"arguments": arguments * GIB, "temporaries": temporaries * GIB}
    largest = [{"shape": "bf16[2,512,64]", "argument": True}]
    return {"name": name, "memory": memory, "cache": cache * GIB, "largest": largest}


PLAN = {
    "resident": {"frozen parameters": 2 * GIB},
    "fits": {"fits": True, "left": GIB},
    "programs": [
        program("prefill", arguments=2, temporaries=1.5),
        program("decode", arguments=3, temporaries=1.5, cache=1),
        program("train step", arguments=2.5, temporaries=5),
    ],
}


def test_a_run_with_one_copy_of_its_model_holds():
    said, holds = one_copy(PLAN)
    assert holds and "most in prefill: 3.50 GiB" in said


@pytest.mark.parametrize(
    ("at", "key", "gib"), [(0, "temporaries", 2.5), (1, "arguments", 4.5), (2, "arguments", 4.5)]
)
def test_a_second_copy_is_found_wherever_it_lies(at, key, gib):
    plan = copy.deepcopy(PLAN)
    plan["programs"][at]["memory"][key] = gib * GIB
    assert not one_copy(plan)[1]


def test_an_array_made_anew_of_one_that_is_given_is_a_copy():
    plan = copy.deepcopy(PLAN)
    plan["programs"][2]["largest"] += [{"shape": "bf16[2,512,64]", "argument": False}]
    said, holds = one_copy(plan)
    assert not holds and "bf16[2,512,64] in train step" in said


def test_a_program_that_is_refused_is_missed():
    plan = copy.deepcopy(PLAN)
    plan["programs"][1]["memory"] = None
    assert one_copy(plan) == ("the compiler refuses decode", False)
    page = "# grpo\n\n## Sent between devices\n\nall-gather\n\n## Largest values\n\nlogits"
    text = report(FACTS["grpo_8b"], plan, page, 61.0)
    assert "planned in 61 s" in text and "all-gather" in text and "logits" not in text and "MISSED" in text
