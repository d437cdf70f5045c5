"""Put trained networks under one roof: the folder that `DalleMini.from_pretrained` takes.

    python tools/train/make_bundle.py runs/emoji runs/emoji/bundle

Weights are stored as float16, half the bytes; loading casts them back.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

import jax.numpy as jnp
from entry import KINDS, user_errors
from train_clip import PREPROCESSOR

from dalle_mini.data.emoji import everyday_emoji
from dalle_mini.models import CLIP, VQGAN, DalleBart

NETWORKS = {"dalle": (DalleBart, "seq2seq"), "vqgan": (VQGAN, "vqgan"), "clip": (CLIP, "clip")}


def make(runs: Path, out: Path) -> None:
    beside = out.with_name(out.name + ".tmp")
    shutil.rmtree(beside, ignore_errors=True)
    for name, (network, run) in NETWORKS.items():
        network.from_pretrained(runs / run / "final").save_pretrained(beside / name, dtype=jnp.float16)
    for name in ("dalle", "clip"):
        for path in (runs / "tokenizers" / name).iterdir():
            shutil.copyfile(path, beside / name / path.name)
    (beside / "clip" / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n")
    names = [emoji.name for emoji in everyday_emoji(kinds=KINDS)]
    (beside / "emoji.json").write_text(json.dumps(names, indent=0) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    os.replace(beside, out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="the folder of the runs seq2seq, vqgan, clip and of the tokenizers")
    parser.add_argument("out", type=Path, help="the bundle's folder, replaced if there")
    with user_errors():
        arguments = parser.parse_args()
        make(arguments.runs, arguments.out)
        size = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
        print(f"{arguments.out}: {size / 1e6:.1f} MB")
