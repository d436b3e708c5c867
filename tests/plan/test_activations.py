"""What layers keep for their backward pass is read of the loops of an optimised program."""

import pytest

from ptjax.plan.activations import Kept, kept
from ptjax.plan.hlo import elements, parse

LAYERS = 4
STACK, HOST = 2 * LAYERS * 8 * 16, 4 * LAYERS * 8
FILLED = (
    "(s32[], bf16[8,16]{1,0}, bf16[4,8,16]{2,1,0}, /*index=3*/f32[4,8]{1,0:S(5)}, f32[4,16,16])"
)
READ = "(s32[], bf16[8,16]{1,0}, f32[4,8,16], f32[4,8]{1,0:S(5)}, f32[4,16,16], f32[4,16,16])"
TEXT = f"""\
HloModule jit_step, is_scheduled=true

%forward (t: {FILLED}) -> {FILLED} {{
  %t = {FILLED} parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = bf16[8,16]{{1,0}} get-tuple-element(%t), index=1
  %stack = bf16[4,8,16]{{2,1,0}} get-tuple-element(%t), index=2
  %far = f32[4,8]{{1,0:S(5)}} get-tuple-element(%t), index=3
  %kernels = f32[4,16,16] get-tuple-element(%t), index=4
  %kernels.1 = f32[4,16,16] copy(%kernels)
  %y = bf16[8,16]{{1,0}} fusion(%x, %kernels.1, %i), kind=kLoop, calls=%layer
  %put = bf16[4,8,16]{{2,1,0}} dynamic-update-slice(%stack, %x, %i)
  %sent = f32[4,8]{{1,0:S(5)}} dynamic-update-slice(%far, %y, %i)
  ROOT %r = {FILLED} tuple(%i, %y, %put, %sent, %kernels.1)
}}

%backward (u: {READ}) -> {READ} {{
  %u = {READ} parameter(0)
  %j = s32[] get-tuple-element(%u), index=0
  %dx = bf16[8,16]{{1,0}} get-tuple-element(%u), index=1
  %read = f32[4,8,16] get-tuple-element(%u), index=2
  %back = f32[4,8]{{1,0:S(5)}} get-tuple-element(%u), index=3
  %weights = f32[4,16,16] get-tuple-element(%u), index=4
  %sum = f32[4,16,16] get-tuple-element(%u), index=5
  %given = bf16[8,16]{{1,0}} fusion(%dx, %read, %back, %weights), kind=kLoop, calls=%layer
  %add = f32[4,16,16] dynamic-update-slice(%sum, %given, %j)
  ROOT %r.1 = {READ} tuple(%j, %given, %read, %back, %weights, %add)
}}

ENTRY %main (k: f32[4,16,16]) -> f32[4,16,16] {{
  %k = f32[4,16,16] parameter(0)
  %start = {FILLED} tuple(%zero, %in, %empty, %none, %k)
  %one = {FILLED} while(%start), condition=%ends, body=%forward
  %made = bf16[4,8,16]{{2,1,0}} get-tuple-element(%one), index=2
  %there = f32[4,8]{{1,0:S(5)}} get-tuple-element(%one), index=3
  %same = f32[4,16,16] get-tuple-element(%one), index=4
  %wide = f32[4,8,16] fusion(%made), kind=kLoop, calls=%convert
  %begun = (f32[4,16,16]{{2,1,0:S(1)}}, f32[4,16,16], u32[]{{:S(2)}}) copy-start(%same)
  %ended = f32[4,16,16]{{2,1,0:S(1)}} copy-done(%begun)
  %again = {READ} tuple(%zero, %seed, %wide, %there, %ended, %zeros)
  %two = {READ} while(%again), condition=%ends, body=%backward
  ROOT %gradient = f32[4,16,16] get-tuple-element(%two), index=5
}}
"""


def test_a_stack_that_one_loop_fills_and_the_next_reads_is_kept_where_it_lies():
    """In the dtype in which it was written; kernels, and what the backward pass writes, are not."""
    assert kept(parse(TEXT), LAYERS) == Kept(STACK, HOST)


@pytest.mark.parametrize("layers", [0, 1, 8])
def test_loops_over_anything_else_keep_nothing(layers):
    assert kept(parse(TEXT), layers) == Kept()


def test_a_stack_may_be_moved_in_parts_between_the_loops():
    whole = "  %wide = f32[4,8,16] fusion(%made), kind=kLoop, calls=%convert"
    assert whole in TEXT
    parts = (
        "  %half = bf16[2,8,16] slice(%made)\n  %rest = bf16[2,8,16] slice(%made)\n"
        '  %wide = bf16[4,8,16] custom-call(%half, %rest), custom_call_target="ConcatBitcast"'
    )
    assert kept(parse(TEXT.replace(whole, parts)), LAYERS) == Kept(STACK, HOST)


def test_what_no_later_loop_reads_is_not_kept():
    after = TEXT.replace("%seed, %wide, %there", "%seed, %zeros.1, %there")
    assert kept(parse(after), LAYERS) == Kept(0, HOST)


def test_what_the_later_loop_changes_is_carried_on_and_not_read():
    """As sums of gradients are, from one micro-batch to the next."""
    after = TEXT.replace("%read, %back, %weights, %add)", "%read, %more, %weights, %add)")
    assert kept(parse(after), LAYERS) == Kept(STACK, 0)


def test_parts_of_a_tuple():
    assert elements("(s32[], (f32[2,3]{1,0:T(8,128)}, u32[]), /*index=2*/pred[4]{0})") == [
        "s32[]",
        "(f32[2,3]{1,0:T(8,128)}, u32[])",
        "pred[4]{0}",
    ]
    assert elements("f32[2,3]{1,0}") == ["f32[2,3]{1,0}"]
