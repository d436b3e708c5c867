"""The bounds of the runs that must fit can fail."""

import copy

import pytest

from benchmarks.tpu.facts import FACTS, one_copy, report

GIB = 2**30
KERNEL = "bf16[2,512,64]"


def program(name, *, arguments, temporaries, cache=0):
    memory = {"arguments": arguments * GIB, "temporaries": temporaries * GIB}
    largest = [{"shape": KERNEL, "argument": True, "size": GIB, "times": 1}]
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


@pytest.mark.parametrize(("size", "one"), [(0.1, True), (0.3, False)])
def test_a_kernel_that_is_laid_otherwise_is_told_and_a_tenth_of_the_model_is_a_copy(size, one):
    plan = copy.deepcopy(PLAN)
    made = {"shape": KERNEL, "argument": False, "size": size * GIB, "times": 1}
    plan["programs"][2]["largest"] += [made, made | {"shape": "bf16[7]", "size": 5 * GIB}]
    said, holds = one_copy(plan)
    assert holds is one and f"made anew in train step: {size:.2f} GiB" in said


def test_a_program_that_is_refused_is_missed():
    plan = copy.deepcopy(PLAN)
    plan["programs"][1]["memory"] = None
    assert one_copy(plan) == ("the compiler refuses decode", False)
    page = "# grpo\n\n## Sent between devices\n\nall-gather\n\n## Largest values\n\nlogits"
    text = report(FACTS["grpo_8b"], plan, page, 61.0)
    assert all(said in text for said in ("planned in 61 s", "all-gather", "MISSED"))
    assert "logits" not in text
