"""Reading compiled programs: known collectives on eight fake devices, loops, and the TPU compiler's complaints."""

import json
import os
import subprocess
import sys

import pytest

from dalle_mini.planning.hlo import collectives, out_of_memory, parse, trip_count, type_bytes

# Run in a process of its own, since the number of devices is fixed when jax starts.
PROGRAM = """
import json
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from dalle_mini.planning.hlo import collectives, memory_of

mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
place = lambda *spec: NamedSharding(mesh, P(*spec))

def layers(weights, x):  # [3 layers, 8, 8], gathered one by one
    def body(x, w):
        return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), place("data")), None
    return jax.lax.scan(body, x, weights)[0]

def pieces(weights, xs):
    def one(total, x):
        return total + layers(weights, x).sum(), None
    return jax.lax.scan(one, 0.0, xs)[0]

weights = jax.ShapeDtypeStruct((3, 8, 8), jnp.float32, sharding=place(None, "data"))
xs = jax.ShapeDtypeStruct((5, 16, 8), jnp.float32, sharding=place(None, "data"))
compiled = jax.jit(pieces).lower(weights, xs).compile()
memory = memory_of(compiled)
every = jax.jit(lambda x: x.sum()).lower(jax.ShapeDtypeStruct((8,), jnp.float32, sharding=place(("data", "model"))))
found = {"scans": collectives(compiled.as_text(), 8), "all": collectives(every.compile().as_text(), 8)}
print(json.dumps({name: [vars(one) for one in ones] for name, ones in found.items()} | {"memory": vars(memory)}))
"""


@pytest.fixture(scope="module")
def found():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_gather_within_two_loops_counts_as_often_as_they_run(found):
    (gather,) = [one for one in found["scans"] if one["op"] == "all-gather"]
    assert (gather["dtype"], gather["group"], gather["count"]) == ("f32", 4, 15)  # 3 layers in 5 pieces
    assert gather["bytes"] == 15 * 8 * 8 * 4
    assert gather["wire_bytes"] == gather["bytes"] * 3 / 4


def test_a_sum_over_all_devices(found):
    (one,) = found["all"]
    assert one == {"op": "all-reduce", "dtype": "f32", "group": 8, "count": 1, "bytes": 4, "wire_bytes": 2 * 4 * 7 / 8}


def test_memory_is_a_devices_own(found):
    assert found["memory"]["arguments"] == 3 * 2 * 8 * 4 + 5 * 4 * 8 * 4  # a fourth of each argument


# As the TPU's compiler writes: loops without a note of how often, axes for groups, one gather overlapped with two
# products (three fusions, one channel), and a reduce-scatter as an all-reduce with a slice.
TPU = """HloModule jit_step, is_scheduled=true

%start.1 (p: bf16[2,8]) -> (bf16[2,8], bf16[8,8]) {
  %p = bf16[2,8]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[8,8]{1,0:T(8,128)} all-gather(%p), channel_id=7, replica_groups=mesh['a'=4,'b'=2] {'a'}
  ROOT %custom-call.1 = (bf16[2,8]{1,0}, bf16[8,8]{1,0}) custom-call(%all-gather.1)
}

%done.1 (p: bf16[2,8]) -> bf16[8,8] {
  %p = bf16[2,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[8,8]{1,0:T(8,128)} all-gather(%p), channel_id=7, replica_groups=mesh['a'=4,'b'=2] {'a'}
}

%add (x: bf16[], y: bf16[]) -> bf16[] {
  %x = bf16[] parameter(0)
  %y = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%x, %y)
}

%all-reduce-scatter.1 (input: bf16[8,8]) -> bf16[2,8] {
  %input = bf16[8,8]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.1 = bf16[8,8]{1,0} all-reduce(%input), channel_id=9, replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %slice = bf16[2,8]{1,0} dynamic-slice(%all-reduce.1, %zero, %zero), dynamic_slice_sizes={2,8}
}

%body (state: (s32[], bf16[2,8], /*index=2*/bf16[8,8])) -> (s32[], bf16[2,8], bf16[8,8]) {
  %state = (s32[]{:T(256)}, bf16[2,8]{1,0}, /*index=2*/bf16[8,8]{1,0}) parameter(0)
  %i = s32[]{:T(256)} get-tuple-element(%state), index=0
  %w = bf16[2,8]{1,0} get-tuple-element(%state), index=1
  %start = (bf16[2,8]{1,0}, bf16[8,8]{1,0}) fusion(%w), kind=kCustom, calls=%start.1
  %whole = bf16[8,8]{1,0} fusion(%w), kind=kCustom, calls=%done.1
  %half = bf16[2,8]{1,0} fusion(%whole), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %next = (s32[]{:T(256)}, bf16[2,8]{1,0}, bf16[8,8]{1,0}) tuple(%i, %half, %whole)
}

%condition (state: (s32[], bf16[2,8], bf16[8,8])) -> pred[] {
  %limit = s32[]{:T(256)} constant(24)
  %state = (s32[]{:T(256)}, bf16[2,8]{1,0}, bf16[8,8]{1,0}) parameter(0)
  %i = s32[]{:T(256)} get-tuple-element(%state), index=0
  ROOT %less = pred[]{:T(1024)} compare(%i, %limit), direction=LT
}

ENTRY %main (p: (s32[], bf16[2,8], bf16[8,8])) -> (s32[], bf16[2,8], bf16[8,8]) {
  %p = (s32[]{:T(256)}, bf16[2,8]{1,0}, bf16[8,8]{1,0}) parameter(0)
  ROOT %while.1 = (s32[]{:T(256)}, bf16[2,8]{1,0}, bf16[8,8]{1,0}) while(%p), condition=%condition, body=%body
}
"""


def test_the_tpu_compilers_ways_of_writing():
    gather, scatter = collectives(TPU, 8)
    assert (gather.op, gather.dtype, gather.group, gather.count) == ("all-gather", "bf16", 4, 24)
    assert gather.bytes == 24 * 128 and gather.wire_bytes == 24 * 96
    assert (scatter.op, scatter.group, scatter.count) == ("reduce-scatter", 4, 24)
    assert scatter.bytes == 24 * 128 and scatter.wire_bytes == 24 * 96


def test_a_loop_of_unknown_length_is_not_guessed():
    program, entry = parse(TPU.replace("constant(24)", "parameter(1)"))
    with pytest.raises(ValueError, match="how often"):
        trip_count(program, program[entry][-1])


def test_a_noted_trip_count_wins():
    noted = 'body=%body, backend_config={"known_trip_count":{"n":"3"}}'
    assert [one.count for one in collectives(TPU.replace("body=%body", noted), 8)] == [3, 3]


def test_bytes_of_types():
    assert type_bytes("bf16[8,128]{1,0:T(8,128)(2,1)}") == 2048
    assert type_bytes("(f32[4]{0}, pred[3], s4[6], f8e4m3fn[2], u32[])") == 16 + 3 + 3 + 2 + 4


def test_out_of_memory_complaints():
    found = out_of_memory(
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (20.06G) exceeds "
        "available HBM (15.48G)."
    )
    assert found == 20.06 * 2**30
    found = out_of_memory("Used 18.21G of 15.48G hbm. Exceeded hbm capacity by 2.73G.")
    assert found == 18.21 * 2**30
    assert out_of_memory("INTERNAL: something else") is None
