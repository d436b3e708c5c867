"""What is read of an optimised program's text: loops counted, groups, bytes, large values."""

import pytest

from ptjax.plan.buffers import largest
from ptjax.plan.collectives import Traffic, traffic
from ptjax.plan.hlo import parse, size

TEXT = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (p: f32[16,8]) -> f32[2,8] {
  %p = f32[16,8]{1,0:T(8,128)} parameter(0)
  %all-reduce.9 = f32[16,8]{1,0} all-reduce(%p), channel_id=9, replica_groups=[1,8]<=[8], \
use_global_device_ids=true, to_apply=%sum
  ROOT %slice = f32[2,8]{1,0} dynamic-slice(%all-reduce.9, %i, %z), dynamic_slice_sizes={2,8}
}

%inner (t: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %t = (s32[], bf16[4,8]{1,0}) parameter(0)
  %x = bf16[4,8]{1,0} get-tuple-element(%t), index=1
  %gathered = bf16[32,8]{1,0:T(8,128)(2,1)} all-gather(%x), channel_id=1, \
replica_groups=[1,8]<=[8], dimensions={0}, use_global_device_ids=true, \
metadata={op_name="jit(step)/layer/gather"}
  ROOT %r = (s32[], bf16[4,8]{1,0}) tuple(%i, %x)
}

%inner_ends (t: (s32[], bf16[4,8])) -> pred[] {
  %t.1 = (s32[], bf16[4,8]{1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

%outer_ends (u: (s32[], bf16[4,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5), metadata={op_name="a"}
  %u.1 = (s32[], bf16[4,8]{1,0}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%u.1), index=0
  ROOT %less.1 = pred[] compare(%counter, %limit), direction=LT
}

%outer (u: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %u = (s32[], bf16[4,8]{1,0}) parameter(0)
  %w = (s32[], bf16[4,8]{1,0}) while(%u), condition=%inner_ends, body=%inner, \
backend_config={"known_trip_count":{"n":"3"},"other":{"n":"7"}}
  %started = (bf16[2,8]{1,0}, bf16[4,8]{1,0}) all-gather-start(%v), channel_id=2, \
replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}, use_global_device_ids=true
  %ended = bf16[4,8]{1,0} all-gather-done(%started)
  %at = s32[]{:T(128)} get-tuple-element(%u), index=0
  %one = s32[]{:T(128)} constant(1)
  %kernel = bf16[4,8]{1,0} custom-call(%v), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"block": "512"
}}, metadata={op_name="jit(step)/kernel"}
  %next = s32[]{:T(128)} add(%at, %one)
  %after_next = s32[]{:T(128)} add(%next, %one)
  ROOT %r.2 = (s32[], bf16[4,8]{1,0}) tuple(%after_next, %ended)
}

ENTRY %main.5 (q: f32[16,8], big: f32[1024,256]) -> f32[2,8] {
  %q = f32[16,8]{1,0} parameter(0), metadata={op_name="batch[\\'tokens\\']"}
  %big = f32[1024,256]{1,0} parameter(1), metadata={op_name="state.params[\\'embed\\']"}
  %first = s32[]{:T(128)} constant(1)
  %s = (s32[], bf16[4,8]{1,0}) tuple(%first, %bf)
  %loop = (s32[], bf16[4,8]{1,0}) while(%s), condition=%outer_ends, body=%outer
  %crossing = f32[100]{0} all-reduce(%g), channel_id=3, replica_groups=[4,2]<=[2,4]T(1,0), \
use_global_device_ids=true, to_apply=%sum
  %along = f32[8]{0} all-to-all(%g), channel_id=5, \
replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}
  %over = f32[8]{0} all-to-all(%g), channel_id=6, \
replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1':(2)2}, dimensions={0}
  %sent = (f32[10]{0}, f32[10]{0}, u32[], u32[]) collective-permute-start(%h), channel_id=4, \
source_target_pairs={{0,1},{1,0}}
  %told = (bf16[80,8]{1,0:T(8,128)(2,1)}, u32[], token[]) send(%g, %after), channel_id=7, \
is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %heard = (bf16[80,8]{1,0:T(8,128)(2,1)}, u32[], token[]) recv(%after), channel_id=8, \
is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %near = f32[2048,256]{1,0:T(8,128)S(1)} copy(%big)
  ROOT %scattered = f32[2,8]{1,0} fusion(%q), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
SLICES = [0, 0, 0, 0, 1, 1, 1, 1]


def test_loops_inside_loops_are_counted_as_often_as_they_turn():
    runs = parse(TEXT).runs()
    assert (runs["main.5"], runs["outer"], runs["inner"]) == (1, 2, 6)
    assert runs["all-reduce-scatter.1"] == 1


def test_of_loops_that_data_end_that_over_chunks_turns_as_often_as_it_may():
    counted = 'backend_config={"known_trip_count":{"n":"3"},"other":{"n":"7"}}'
    named = 'metadata={op_name="jit(step)/jvp(head_chunks)/while"}'
    assert parse(TEXT.replace(counted, named)).runs(chunks=4)["inner"] == 2 * 4
    assert parse(TEXT.replace(counted, named.replace("head", "other"))).runs(4)["inner"] == 2


def test_collectives_by_kind_count_and_what_a_device_sends():
    found = {(one.kind, one.between_slices): one for one in traffic(parse(TEXT), SLICES)}
    gathers = found["all-gather", True]
    assert gathers == Traffic("all-gather", True, 6, 6 * 512 * 7 // 8)
    near = found["all-gather", False]
    assert near == Traffic("all-gather", False, 2, 2 * 64 // 2)
    hosts = 2 * 80 * 8 * 2 // 2
    assert found["all-reduce", True] == Traffic("all-reduce", True, 2, 2 * 400 // 2 + hosts)
    assert found["collective-permute", False][2:] == (1, 44)
    scattered = found["reduce-scatter", True]
    assert scattered == Traffic("reduce-scatter", True, 1, 512 * 7 // 8)
    assert found["all-to-all", False][2:] == (1, 32 * 3 // 4)
    assert found["all-to-all", True][2:] == (1, 32 * 3 // 4)
    assert len(found) == 7


def test_a_mesh_may_say_in_what_order_its_devices_are():
    """Then the groups of axis_1 are the even devices and the odd ones: of both slices."""
    before = "mesh['axis_0'=2,'axis_1'=4] {'axis_1'}"
    assert before in TEXT
    after = TEXT.replace(before, "mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_1'}")
    assert _sums(after)["all-to-all", True] == (2, 2 * 24)
    listed = before.replace(" {", ", device_ids=(0,1,2,3,7,6,5,4) {")
    assert traffic(parse(TEXT.replace(before, listed)), SLICES) == traffic(parse(TEXT), SLICES)


def _sums(text):
    found = traffic(parse(text), SLICES)
    return {(one.kind, one.between_slices): (one.times, one.sent) for one in found}


def test_a_collective_over_one_slice_stays_in_it():
    found = traffic(parse(TEXT), [0] * 8)
    assert [one.sent for one in found if one.between_slices] == [0]  # what hosts would do


def test_one_that_is_spread_over_fusions_counts_once():
    fusion = TEXT[TEXT.index("%all-reduce-scatter.1 (p") : TEXT.index("%inner (t")]
    fusion = fusion.replace("%all-reduce-scatter.1", "%all-reduce-scatter.2")
    fusion = fusion.replace("%all-reduce.9", "%again")
    call = "  %called = f32[2,8]{1,0} fusion(%q), kind=kCustom, calls=%all-reduce-scatter.2\n"

    def times(fusion):
        text = TEXT.replace("%inner (t", fusion + "%inner (t", 1)
        text = text.replace("  ROOT %scattered", call + "  ROOT %scattered")
        return sum(one.times for one in traffic(parse(text), SLICES))

    before = sum(one.times for one in traffic(parse(TEXT), SLICES))
    assert times(fusion) == before
    assert times(fusion.replace("channel_id=9", "channel_id=10")) == before + 1


def test_what_stands_behind_a_kernel_counts():
    """Its metadata take several lines, of which one begins as a computation's end does."""
    kernel = (
        '  %kernel = f32[8]{0} custom-call(%x), custom_call_target="tpu_custom_call", '
        'frontend_attributes={kernel_metadata={\n"xprof_metadata":"{}"\n}}, metadata={}\n'
    )
    assert "  %gathered" in TEXT
    after = TEXT.replace("  %gathered", kernel + "  %gathered")
    assert traffic(parse(after), SLICES) == traffic(parse(TEXT), SLICES)


def test_all_that_a_shard_map_sends_counts_though_it_has_one_channel():
    one_channel = TEXT.replace("channel_id=3", "channel_id=5")
    wanted, found = (traffic(parse(text), SLICES) for text in (TEXT, one_channel))
    assert found == wanted


def test_the_largest_values_are_named_and_none_is_inside_a_fusion_or_a_core():
    found = largest(parse(TEXT), 3)
    assert [(one.name, one.shape, one.size, one.argument) for one in found] == [
        ("state.params['embed']", "f32[1024,256]", 2**20, True),
        ("jit(step)/layer/gather", "bf16[32,8]", 512, False),
        ("batch['tokens']", "f32[16,8]", 512, True),
    ]


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ("f32[2,3]{1,0:T(8,128)}", 24),
        ("(bf16[4]{0}, s32[], pred[5])", 17),
        ("f8e4m3fn[16]", 16),
        ("s4[3]", 2),
        ("u8[0]", 0),
    ],
)
def test_sizes_of_shapes(shape, wanted):
    assert size(shape) == wanted
