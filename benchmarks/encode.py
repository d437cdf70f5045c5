"""How close does encoding come to the VQGAN alone?

    python benchmarks/encode.py --pictures 4096 --json

Makes a folder of tars of captioned JPEG and PNG pictures, then measures in turn, `--repeats` times each:

- alone: the VQGAN on pictures that are decoded, resized and in memory, in the batches that encoding uses;
- encode: `dalle_mini.data.encode` from the tars to the manifest, without what it takes to start (reading weights,
  compiling, starting processes): the rate between the first picture that is reported and the last.

The figure is the ratio of the medians: 1 would be decoding for nothing. The shipped VQGAN looks at 128 x 128 pixels and
is quick; with a larger one decoding matters less.
"""

import argparse
import io
import json
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

KINDS = {"png64": ("PNG", 64), "jpeg128": ("JPEG", 128), "jpeg256": ("JPEG", 256)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vqgan", default="shipped", help="folder, repository or bundle (default: shipped)")
    parser.add_argument("--pictures", type=int, default=4096, help="in eight tars (default: 4096)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS], help="of pictures (default: all)")
    parser.add_argument("--quick-jpeg", action="store_true", help="as of `dalle-mini encode`")
    parser.add_argument("--workers", type=int, help="processes that decode (default: one a core)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print a JSON object of the figures as the last line")
    args = parser.parse_args()
    results = {kind: measure(kind, args) for kind in args.kinds}
    for kind, figures in results.items():
        print(
            f"{kind}: VQGAN alone {figures['alone']:.0f} pictures a second, encoding {figures['encode']:.0f}: "
            f"{figures['ratio']:.2f} times slower"
        )
    if args.json:
        print(
            json.dumps({"pictures": args.pictures, "repeats": args.repeats, "quick_jpeg": args.quick_jpeg, **results})
        )


def measure(kind: str, args: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder) / "dataset"
        write_tars(dataset, kind, args.pictures)
        alone, encoding = [], []
        for number in range(args.repeats):  # in turn: a machine's mood changes
            alone.append(vqgan_alone(args))
            encoding.append(encode_rate(dataset, Path(folder) / f"out-{number}", args))
    rates = statistics.median(alone), statistics.median(encoding)
    return {"alone": rates[0], "encode": rates[1], "ratio": rates[0] / rates[1]}


def write_tars(folder: Path, kind: str, pictures: int, tars: int = 8) -> None:
    """As img2dataset writes them. The pictures are smooth noise: as large once packed as photographs are."""
    folder.mkdir()
    name, side = KINDS[kind]
    rng = np.random.default_rng(0)
    for tar in range(tars):
        with tarfile.open(folder / f"{tar:05d}.tar", "w") as archive:
            for n in range(tar * pictures // tars, (tar + 1) * pictures // tars):
                coarse = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8))
                file = io.BytesIO()
                coarse.resize((side * 5 // 4, side), Image.Resampling.BICUBIC).save(file, name)
                for suffix, data in ((name.lower().replace("jpeg", "jpg"), file.getvalue()), ("txt", b"a picture")):
                    member = tarfile.TarInfo(f"{n:08d}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


def vqgan_alone(args: argparse.Namespace) -> float:
    """Pictures a second, with as many batches under way as encoding has."""
    from dalle_mini.data.encode import EncodeOptions, Weights
    from dalle_mini.data.encode.encoders import Networks
    from dalle_mini.data.encode.stage import WAITING

    vqgan, _ = Weights(args.vqgan).load(with_clip=False)
    batch_size = EncodeOptions().batch_size
    networks = Networks(vqgan, None, batch_size)
    side = vqgan.config.resolution
    images = np.random.default_rng(0).integers(0, 256, (batch_size, side, side, 3), np.uint8)
    captions = [""] * batch_size
    networks.start(images, captions)()  # compiles
    batches, waiting = max(4, args.pictures // batch_size), []
    started = time.perf_counter()
    for _ in range(batches):
        waiting.append(networks.start(images, captions))
        if len(waiting) > WAITING * len(networks.devices):
            waiting.pop(0)()
    for finish in waiting:
        finish()
    return batches * batch_size / (time.perf_counter() - started)


def encode_rate(dataset: Path, out: Path, args: argparse.Namespace) -> float:
    from dalle_mini.data.encode import EncodeOptions, Weights, encode
    from dalle_mini.data.sources import open_source

    seen = []

    def progress(stage: str, now) -> None:
        if stage == "encode" and now.images:
            seen.append((time.perf_counter(), now.images))

    options = EncodeOptions(quick_jpeg=args.quick_jpeg)
    encode(open_source(str(dataset)), Weights(args.vqgan), str(out), options, workers=args.workers, progress=progress)
    (begin, first), (end, last) = seen[0], seen[-1]
    assert last == args.pictures
    return (last - first) / (end - begin)


if __name__ == "__main__":
    main()
