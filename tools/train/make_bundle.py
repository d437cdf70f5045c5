"""Put trained networks under one roof: the folder that `DalleMini.from_pretrained` takes.

    python tools/train/make_bundle.py runs/emoji runs/emoji/bundle

Weights are stored as float16, half the bytes; loading casts them back.
"""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
from entry import WORLD, World, parser, user_errors
from train_clip import PREPROCESSOR

from dalle_mini.errors import UserError
from dalle_mini.models import CLIP, VQGAN, DalleBart
from dalle_mini.models.fingerprint import fingerprint
from dalle_mini.models.tokens_record import known_tokens
from dalle_mini.runtime import console, files
from dalle_mini.weights.bundle import LICENCES, TOKENS_RECORD

NETWORKS = {"dalle": (DalleBart, "seq2seq"), "vqgan": (VQGAN, "vqgan"), "clip": (CLIP, "clip")}
HERE = Path(__file__).parent
TEXTS = {name: (HERE.parents[1] if name == "LICENSE" else HERE) / name for name in LICENCES}


def make(runs: Path, out: Path) -> None:
    networks = {name: network.from_pretrained(runs / run / "final") for name, (network, run) in NETWORKS.items()}
    check_same_vqgan(runs / "seq2seq" / "final", networks["vqgan"], runs / "vqgan" / "final")
    with files.blamed(out), files.written_beside(out) as beside:
        for name, network in networks.items():
            network.save_pretrained(beside / name, dtype=jnp.float16)
        for name in ("dalle", "clip"):
            for path in (runs / "tokenizers" / name).iterdir():
                shutil.copyfile(path, beside / name / path.name)
        files.write_whole(beside / "clip" / "preprocessor_config.json", json.dumps(PREPROCESSOR, indent=2) + "\n")
        world = World.load(runs / WORLD)
        names = [emoji.name for emoji in world.emoji()]
        files.write_whole(beside / "emoji.json", json.dumps(names, indent=0) + "\n")
        files.write_whole(beside / "scenes.json", json.dumps({"styles": world.styles}) + "\n")
        for name, path in TEXTS.items():
            shutil.copyfile(path, beside / name)


def check_same_vqgan(seq2seq: Path, vqgan: VQGAN, folder: Path) -> None:
    """Raises UserError where `seq2seq` says that it learned another VQGAN's tokens: they would decode to confetti."""
    learned = known_tokens(seq2seq)  # None of a run from before it was recorded
    if learned is not None and learned != fingerprint(vqgan):
        raise UserError(
            f"{seq2seq / TOKENS_RECORD}: the tokens it learned are of VQGAN {learned}, but {folder} is "
            f"{fingerprint(vqgan)}: encode the images with this one and train the seq2seq model anew"
        )


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument(
        "runs", type=Path, help="the folder of the runs seq2seq, vqgan, clip, of the tokenizers and of world.json"
    )
    options.add_argument("out", type=Path, help="the bundle's folder, replaced if there")
    with user_errors():
        arguments = options.parse_args()
        make(arguments.runs, arguments.out)
        size = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
        console.answer(f"{arguments.out}: {size / 1e6:.1f} MB")
