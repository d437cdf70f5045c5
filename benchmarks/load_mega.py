"""How much memory and time does loading a model take?

    python benchmarks/load_mega.py                      # DALL·E mega: 2.6 billion parameters, float16 -> bfloat16
    python benchmarks/load_mega.py --stored float32 --format sharded --layout unrolled
    python benchmarks/load_mega.py --size mini --json   # float32 -> float32

Writes a checkpoint of the published architecture with made-up values, loads it a few times, each time in a
process of its own, and prints the most memory that one took (peak resident set size) and the seconds of the fastest,
imports not counted. The bound is the size of the model in memory, and its largest tensor, and 300 MB for everything
else, the Python interpreter and JAX among it. The disk is warm: the file has just been written, or was read before.

Measured on 2 cores of an AMD EPYC, jax 0.10.2, with the commands above:

| checkpoint | in memory | peak | bound | seconds |
|---|---|---|---|---|
| mega, Flax msgpack, scanned, float16 | bfloat16, 5,175 MB | 5,365 MB | 5,878 MB | 9.1 |
| mega, sharded Flax msgpack, unrolled, float32 | bfloat16, 5,175 MB | 5,366 MB | 5,878 MB | 5.3 |
| mini, Flax msgpack, scanned, float32 | float32, 1,751 MB | 1,940 MB | 2,257 MB | 0.6 |
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgpack
import numpy as np

from dalle_mini.commands.terminal import Parser, exit_code
from dalle_mini.errors import UserError
from dalle_mini.weights.folder import CONFIG, INDEX, MSGPACK, save_tensors
from dalle_mini.weights.formats.tensors import Tensor

SHARD_BYTES = 2_000_000_000
ALLOWANCE = 300_000_000


def architecture(layers: int, d_model: int, heads: int, ffn_dim: int, texts: int, images: int) -> dict:
    """The fields of `config.json`; `texts` and `images` are the sizes of the two vocabularies."""
    config = {"d_model": d_model, "encoder_vocab_size": texts, "image_vocab_size": images}
    config |= {"max_text_length": 64, "image_length": 256}
    for stack in ("encoder", "decoder"):
        config |= {f"{stack}_layers": layers, f"{stack}_attention_heads": heads, f"{stack}_ffn_dim": ffn_dim}
    return config


SIZES = {
    "mega": architecture(24, 2048, 32, 4096, 50272, 16415),
    "mini": architecture(12, 1024, 16, 2730, 50264, 16384),
    "tiny": architecture(3, 64, 4, 160, 500, 160),
}
STORED = {"mega": "float16", "mini": "float32", "tiny": "float16"}
DTYPES = {"mega": "bfloat16", "mini": "float32", "tiny": "bfloat16"}


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: measure(parse(argv)))


def parse(argv: list[str] | None) -> argparse.Namespace:
    head, _, rest = __doc__.partition("\n")
    parser = Parser(description=head, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--size", choices=SIZES, default="mega", help="(default: mega)")
    add("--stored", choices=("float16", "float32"), help="in the file (default: float16, of mini float32)")
    add("--dtype", choices=("bfloat16", "float16", "float32"), help="in memory (default: bfloat16, of mini float32)")
    add("--format", choices=("flax", "safetensors", "sharded"), default="flax", help="sharded: flax (default: flax)")
    add("--layout", choices=("scanned", "unrolled"), default="scanned", help="layers in one tensor or in many")
    add("--runs", metavar="N", type=int, default=3, help="how often it is loaded (default: 3)")
    add("--folder", metavar="FOLDER", help="for the checkpoint, up to 11 GB (default: a temporary one)")
    add("--json", action="store_true", help="end with one line of JSON")
    add("--load", metavar="FOLDER", help=argparse.SUPPRESS)  # what the processes are started with
    args = parser.parse_args(argv)
    args.stored, args.dtype = args.stored or STORED[args.size], args.dtype or DTYPES[args.size]
    if args.runs < 1:
        raise UserError(f"runs {args.runs}: at least 1 is needed")
    return args


def measure(args: argparse.Namespace) -> None:
    if args.load:
        print(json.dumps(load(Path(args.load), args)))
        return
    try:
        with tempfile.TemporaryDirectory(prefix="load_mega-", dir=args.folder) as temporary:
            runs = write_and_load(Path(temporary) / "model", args)
    except OSError as error:
        place = args.folder or tempfile.gettempdir()
        raise UserError(f"cannot write into {place}: {error.strerror or error}; name another --folder") from None
    fastest = min(runs, key=lambda run: run["seconds"])
    figures = {name: getattr(args, name) for name in ("size", "stored", "dtype", "format", "layout", "runs")}
    figures |= fastest | {name: max(run[name] for run in runs) for name in ("rss_before", "peak_rss")}
    figures["bound"] = figures["bytes"] + figures["largest_tensor"] + ALLOWANCE
    figures["is_met"] = figures["peak_rss"] <= figures["bound"]
    print(report(figures))
    if args.json:
        print(json.dumps(figures))


def write_and_load(folder: Path, args: argparse.Namespace) -> list[dict]:
    say(f"writing {args.size} as {args.stored} into {folder}")
    write(folder, args)
    os.sync()  # so that it is not written while it is read
    command = [sys.executable, __file__, "--load", str(folder)]
    command += [f"--{name}={getattr(args, name)}" for name in ("size", "stored", "dtype", "layout")]
    runs = []
    for number in range(args.runs):
        say(f"loading it, {number + 1} of {args.runs}")
        runs.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
    return runs


def report(figures: dict) -> str:
    megabytes = {name: f"{value / 1e6:,.0f} MB" for name, value in figures.items() if type(value) is int}
    verdict = "met" if figures["is_met"] else "EXCEEDED"
    return "\n".join(
        f"{name:19} {value}"
        for name, value in {
            "checkpoint": f"{figures['size']}, {figures['format']}, {figures['layout']}, {figures['stored']}",
            "model": f"{figures['parameters']:,} parameters, {figures['dtype']}, {megabytes['bytes']}",
            "largest tensor": megabytes["largest_tensor"],
            "memory before": megabytes["rss_before"],
            "peak of memory": f"{megabytes['peak_rss']}; the bound of {megabytes['bound']} is {verdict}",
            "seconds": f"{figures['seconds']:.2f} ({figures['cpu_seconds']:.2f} of processor time)",
        }.items()
    )


def load(folder: Path, args: argparse.Namespace) -> dict:
    """Load the model in this process, tell what that took, and then look at its values."""
    import jax

    from dalle_mini.models import DalleBart
    from dalle_mini.weights import key_mapping
    from dalle_mini.weights.pretrained import flatten

    jax.devices()
    figures = {"rss_before": peak_rss()}
    started, cpu = time.perf_counter(), time.process_time()
    model = DalleBart.from_pretrained(folder, dtype=args.dtype)
    figures |= {"seconds": round(time.perf_counter() - started, 3), "cpu_seconds": round(time.process_time() - cpu, 3)}
    figures["peak_rss"] = peak_rss()

    from flax import nnx

    arrays = flatten(nnx.state(model))
    wanted = key_mapping.dalle_bart(checkpoint(args), model.config)
    for name, array in arrays.items():
        last = array.shape[0] - 1
        if not np.array_equal(np.asarray(array[last:]), wanted[name].rows(last, last + 1).astype(array.dtype)):
            raise SystemExit(f"{name} has other values than were written")
    return figures | {
        "parameters": sum(array.size for array in arrays.values()),
        "bytes": sum(array.nbytes for array in arrays.values()),
        "largest_tensor": max(array.nbytes for array in arrays.values()),
        "device": jax.devices()[0].device_kind,
    }


def peak_rss() -> int:
    """Bytes that were resident at most, of this process."""
    status = Path("/proc/self/status")
    if status.exists():  # `ru_maxrss` begins with that of the process that started this one
        return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """The published names, scanned: every tensor of a layer has a leading axis of layers."""
    d, images = config["d_model"], config["image_vocab_size"] + 1
    tensors = {"lm_head/kernel": (d, images)}
    for stack, attentions, tokens, positions in (
        ("encoder", 1, config["encoder_vocab_size"], config["max_text_length"]),
        ("decoder", 2, images, config["image_length"]),
    ):
        ffn = config[f"{stack}_ffn_dim"]
        layer = {f"GLU_0/Dense_{i}/kernel": (d, ffn) for i in (0, 1)} | {"GLU_0/Dense_2/kernel": (ffn, d)}
        layer |= {"GLU_0/LayerNorm_0/bias": (d,), "GLU_0/LayerNorm_1/bias": (ffn,)}
        for i in range(attentions):
            layer |= {f"FlaxBartAttention_{i}/{which}_proj/kernel": (d, d) for which in ("q", "k", "v", "out")}
            norms = (f"LayerNorm_{2 * i}/bias", f"LayerNorm_{2 * i + 1}/bias", f"LayerNorm_{2 * i + 1}/scale")
            layer |= dict.fromkeys(norms, (d,))
        around = {"embed_tokens/embedding": (tokens, d), "embed_positions/embedding": (positions, d)}
        around |= dict.fromkeys(("layernorm_embedding/scale", "layernorm_embedding/bias", "final_ln/bias"), (d,))
        tensors |= {f"model/{stack}/{name}": shape for name, shape in around.items()}
        scanned = f"model/{stack}/layers/FlaxBart{stack.title()}Layers"
        tensors |= {f"{scanned}/{name}": (config[f"{stack}_layers"], *shape) for name, shape in layer.items()}
    return tensors


def checkpoint(args: argparse.Namespace) -> dict[str, Tensor]:
    """All tensors by their published names; the values do not depend on the layout."""
    tensors = {}
    for name, shape in shapes(SIZES[args.size]).items():
        tensor = made_up(name, shape, np.dtype(args.stored))
        if args.layout == "scanned" or "Layers/" not in name:
            tensors[name] = tensor
        else:
            for i in range(shape[0]):
                layer = tensor.slice_rows(i, i + 1).reshape(*shape[1:])
                tensors[name.replace("Layers/", f"Layer_{i}/")] = layer
    return tensors


def made_up(name: str, shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
    """The same 65,521 random values over and over: a prime number, so that no two rows of a tensor are alike."""
    values = np.random.default_rng(zlib.crc32(name.encode())).normal(scale=0.02, size=65521).astype(dtype)
    row = math.prod(shape[1:])

    def rows(start: int, stop: int) -> np.ndarray:
        turned = np.roll(values, -(start * row) % len(values))
        return np.resize(turned, (stop - start, *shape[1:]))

    return Tensor(shape, dtype, rows)


def write(folder: Path, args: argparse.Namespace) -> None:
    config, tensors = {"model_type": "dallebart"} | SIZES[args.size], checkpoint(args)
    if args.format == "safetensors":
        save_tensors(folder, config, tensors)
        return
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps(config))
    if args.format == "flax":
        write_msgpack(folder / MSGPACK, tensors)
        return
    shards = list(in_shards(tensors))
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"flax_model-{number:05}-of-{len(shards):05}.msgpack"
        write_msgpack(folder / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    (folder / (MSGPACK + INDEX)).write_text(json.dumps({"weight_map": weight_map}))


def in_shards(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    shard, size = {}, 0
    for name, tensor in tensors.items():
        length = math.prod(tensor.shape) * tensor.dtype.itemsize
        if shard and size + length > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += length
    yield shard


def write_msgpack(path: Path, tensors: dict[str, Tensor]) -> None:
    """The bytes that `flax.serialization.to_bytes` makes from the nested tree, without all of it in memory."""
    tree = {}
    for name, tensor in tensors.items():
        *modules, leaf = name.split("/")
        node = tree
        for module in modules:
            node = node.setdefault(module, {})
        node[leaf] = tensor
    with path.open("wb") as stream:

        def write_node(node: dict | Tensor) -> None:
            if isinstance(node, dict):
                stream.write(msgpack.Packer().pack_map_header(len(node)))
                for name, child in node.items():
                    stream.write(msgpack.packb(name))
                    write_node(child)
                return
            length = math.prod(node.shape) * node.dtype.itemsize
            # An extension object of code 1: [shape, dtype, bytes], with lengths of four bytes.
            head = b"\x93" + msgpack.packb(node.shape) + msgpack.packb(node.dtype.name) + b"\xc6" + length.to_bytes(4)
            stream.write(b"\xc9" + (len(head) + length).to_bytes(4) + b"\x01" + head)
            stream.write(node.read().reshape(-1).view(np.uint8))

        write_node(tree)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
