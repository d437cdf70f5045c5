"""Does drawing fit on a TPU? Asks the TPU's compiler, without a TPU.

    pip install '.[tpu]'
    python benchmarks/tpu_compile.py                             # mega, 64 guided candidates over the 8 cores of a v3-8
    python benchmarks/tpu_compile.py --size mini --candidates 128 --topology v5e:2x2 --window 8

Compiles the two programs of the decoding loop in bfloat16 and prints, for each, what a core keeps in memory: the
arguments (weights, keys and values), what the program needs besides, and the sum. A program that does not fit is the
compiler's own error.
"""

import argparse
import json
import os
import sys
import time
from functools import partial

os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from dalle_mini.generation.decode import decode_steps, prefill
from dalle_mini.generation.optimize import optimized_shapes
from dalle_mini.generation.programs import ALL, CONTEXT, IMAGES, Programs, mesh_of
from dalle_mini.settings import SAMPLERS, SamplingParams
from generation import SIZES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="mega")
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--window", type=int, default=1, help="tokens of a pass (default: 1, sequential decoding)")
    parser.add_argument("--topology", default="v3:2x2", help="(default: v3:2x2, the eight cores of a v3-8)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    devices = topologies.get_topology_desc(platform="tpu", topology_name=args.topology).devices
    print(f"{len(devices)} cores of {devices[0].device_kind}, {args.size}, {args.candidates} guided candidates")
    figures = {"cores": len(devices), "device": devices[0].device_kind}
    for name, compile_it in lowered(args.size, args.candidates, args.window, devices).items():
        started = time.perf_counter()
        memory = compile_it().memory_analysis()
        kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        figures[name] = {
            "arguments_gb": memory.argument_size_in_bytes / 1e9,
            "besides_gb": memory.temp_size_in_bytes / 1e9,
            "sum_gb": (kept + memory.temp_size_in_bytes) / 1e9,
            "seconds": time.perf_counter() - started,
        }
        print(
            "{name}: arguments {arguments_gb:.2f} GB, besides {besides_gb:.2f} GB, in all {sum_gb:.2f} GB a core "
            "(compiled in {seconds:.0f} s)".format(name=name, **figures[name]),
            flush=True,
        )
    if args.json:
        print(json.dumps(figures))


def lowered(size: str, candidates: int, window: int, devices) -> dict:
    """The functions that compile the two programs: one prompt's candidates, the cache at its full length."""
    mesh = mesh_of(devices, 1, candidates)
    graphdef, params = optimized_shapes(SIZES[size], jnp.dtype("bfloat16"), platform="tpu")
    config = SIZES[size]
    programs = Programs(
        graphdef=graphdef,
        guided=True,
        most=config.top_k,
        unlimited=False,
        codebook_size=config.image_vocab_size,
        sampler=SAMPLERS[0],
        window=window,
        mesh=mesh,
    )

    def placed(tree, specs):
        """Shapes where they are on the devices; `specs` is a prefix of the tree."""

        def shapes(spec, part):
            sharding = NamedSharding(mesh, spec)
            return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), part)

        return jax.tree.map(shapes, specs, tree, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))

    keys = placed(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (1, candidates))), IMAGES)
    text = placed(jax.ShapeDtypeStruct((2, 2, 1, config.max_text_length), jnp.int32), ALL)
    params = placed(params, ALL)
    model = nnx.merge(graphdef, params)
    context, state = jax.eval_shape(partial(prefill, programs), params, text, keys)
    state = state._replace(cache=jax.eval_shape(partial(model.grow, room=config.image_length), state.cache))
    each = jax.ShapeDtypeStruct((1,), jnp.float32)
    top_k = jax.ShapeDtypeStruct((1,), jnp.int32)
    sampling = placed(SamplingParams(each, each, each, top_k), ALL)
    stop = placed(jax.ShapeDtypeStruct((), jnp.int32), ALL)
    rest = placed(context, CONTEXT), placed(state, programs.state), keys, stop, sampling, None
    return {
        "prefill": lambda: prefill.lower(programs, params, text, keys).compile(),
        "decode_steps": lambda: decode_steps.lower(programs, params, *rest).compile(),
    }


if __name__ == "__main__":
    sys.exit(main())
