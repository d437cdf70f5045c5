"""A small dataset of noise for tests of encoding, and a command: `python noise_dataset.py VQGAN OUT ...` encodes it.

Pictures are PNG files of noise, a few of them alike or broken.
"""

import argparse
import hashlib
import io
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from dalle_mini.data.encode.filters import Filters
from dalle_mini.data.sources.example import Example

PARTS, ROWS = 5, 7  # of which one is unreadable and one repeats a key
FILTERS = Filters(min_side=None, duplicates="near")
SEEN = PARTS * ROWS
DROPPED = {"picture damaged": 1, "duplicate key": 1, "duplicate picture": 1, "caption too short": 1}


@dataclass(frozen=True)
class NoisePart:
    """Some of the dataset. `deadly` examples kill the process that looks at their picture, once or always."""

    number: int
    rows: int = ROWS
    hold: str | None = None  # a file: reading ends when it is there
    deadly: tuple[int, ...] = ()
    marks: str | None = None  # a folder: what is deadly is so only as long as its mark is not there

    @property
    def name(self) -> str:
        return f"noise {self.number}"

    @property
    def size(self) -> int:
        return self.rows

    def examples(self):
        for row in range(self.rows):
            index = self.number * ROWS + row
            example = Example(
                f"noise-{index}", image(index), (f"picture {index}, ünïcode 🐌", f"caption two of {index}")
            )
            if index == 3:
                example = Example("noise-3", image(3)[:60], example.captions)
            if index == 9:
                example = Example("noise-1", image(9), example.captions)
            if index == 16:
                example = Example("noise-16", image(2), example.captions)
            if index == 20:
                example = Example("noise-20", image(20), ("é",))
            if index in self.deadly:
                example = Example(example.key, Deadly(image(index), self._mark(index)), example.captions)
            yield example
        while self.hold and not os.path.exists(self.hold):
            time.sleep(0.01)

    def _mark(self, index: int) -> str | None:
        return self.marks and f"{self.marks}/{index}"


class Deadly(bytes):
    """A file that kills the process that asks for its length; where it leaves a mark, only once."""

    def __new__(cls, data: bytes, mark: str | None):
        self = super().__new__(cls, data)
        self.mark = mark
        return self

    def __bool__(self) -> bool:
        if self.mark is None or not os.path.exists(self.mark):
            if self.mark:
                Path(self.mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return True


@dataclass(frozen=True)
class NoiseDataset:
    parts_count: int = PARTS
    options: dict = field(default_factory=dict)  # of every part
    free: int = PARTS  # parts from this one on are held until the file `gate` is there
    gate: str = "/dev/null/never"
    seed: int = 0
    sparse_columns: ClassVar[bool] = False

    def origin(self):
        return {"kind": "noise", "seed": self.seed}

    def parts(self):
        held = {"hold": self.gate}
        return [
            NoisePart(number, **(self.options if number < self.free else self.options | held))
            for number in range(self.parts_count)
        ]


def image(index: int) -> bytes:
    """A PNG of noise in large cells, 12 x 9 to 12 x 12 pixels."""
    cells = np.random.default_rng(index).integers(0, 256, (3, 4, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(cells).resize((12, 9 + index % 4), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def make_vqgan(folder: Path, seed: int = 0) -> str:
    """The folder of a VQGAN of 8 x 8 pixels, 16 tokens and 16 codes."""
    from flax import nnx

    from dalle_mini.models import VQGAN
    from dalle_mini.models.config import VQGANConfig

    config = VQGANConfig(
        ch=4, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), resolution=8, z_channels=4, embed_dim=4,
        n_embed=16, norm_groups=2,
    )  # fmt: skip
    VQGAN(config, rngs=nnx.Rngs(seed)).save_pretrained(folder)
    return str(folder)


def content(folder: Path) -> dict[str, str]:
    """A hash of every file in a folder, by name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def options(**changes):
    """The options of a run over the dataset: shards of 8 rows, batches of 3."""
    from dalle_mini.data.encode import EncodeOptions

    return EncodeOptions(**{"filters": FILTERS, "validation": 0.2, "shard_rows": 8, "batch_size": 3, **changes})


def run_encode(vqgan, out, dataset=None, changes=None, workers=0, **more):
    """Without processes that read, which take a second to start, where the test is not of them."""
    from dalle_mini.data.encode import Weights, encode

    return encode(
        dataset or NoiseDataset(), Weights(vqgan), str(out), options(**(changes or {})), workers=workers, **more
    )


def main() -> int:
    from dalle_mini.data.encode import Weights, encode
    from dalle_mini.data.encode.launchers import find_share
    from dalle_mini.errors import UserError

    parser = argparse.ArgumentParser()
    parser.add_argument("vqgan")
    parser.add_argument("out")
    parser.add_argument("--hold")
    parser.add_argument("--free", type=int, default=PARTS)
    args = parser.parse_args()
    dataset, share = NoiseDataset(options={"hold": args.hold}, free=args.free), find_share(None, None, os.environ)
    try:
        outcome = encode(dataset, Weights(args.vqgan), args.out, options(), workers=2, share=share)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("finished" if outcome.manifest else f"{outcome.parts_left} parts left")
    return 0


if __name__ == "__main__":
    sys.exit(main())
