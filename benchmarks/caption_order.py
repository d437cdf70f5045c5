"""Does the model read in which order a caption names things, or is a caption a bag of words to it?

    python benchmarks/caption_order.py
    python benchmarks/caption_order.py --model runs/emoji/bundle --dalle runs/emoji/seq2seq --prompts 90

Nothing is drawn. For pairs of emoji that training never showed together the right picture is made ("a snail to the left
of a rocket"), and the model is asked how likely its tokens are under that caption and under the one with the two names
exchanged. One that reads finds the first likelier every time; one that does not, half of the time. An answer takes a
minute, and it tells before any picture does: the loss hardly shows it, since it is one choice of two in 256 tokens.
"""

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dalle_mini.commands.terminal import Parser, exit_code
from dalle_mini.emoji.art import find_font
from dalle_mini.emoji.packages import default_folder
from dalle_mini.emoji.scene_captions import RELATIONS
from dalle_mini.emoji.scene_prompts import held_out_scenes, right_image, scene_caption
from dalle_mini.emoji.styled import draw_styled
from dalle_mini.emoji.styled_prompts import PAIR, right_scene, with_names_exchanged
from dalle_mini.errors import UserError
from dalle_mini.training.run.init_from import loaded_parameters

BATCH = 16


def main() -> int:
    head, _, rest = __doc__.partition("\n")
    parser = Parser(description=head, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="FOLDER", help="a bundle (default: the shipped model)")
    parser.add_argument("--art", metavar="FOLDER", type=Path, help="of the drawn styles (default: the user's cache)")
    parser.add_argument("--dalle", metavar="FOLDER", help="other weights of its DalleBart, such as a run's folder")
    parser.add_argument("--prompts", metavar="N", type=int, default=90, help="(default: 90)")
    parser.add_argument("--seed", metavar="N", type=int, default=1, help="of their choice (default: 1)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")

    def run() -> None:
        args = parser.parse_args()
        if args.prompts < len(RELATIONS):
            raise UserError(f"prompts {args.prompts}: at least one for each of {len(RELATIONS)} relations")
        rows = measure(args.model, args.dalle, args.prompts, args.seed, args.art)
        print(f"{'':<14}{'nats, as asked':>16}{'exchanged':>12}{'as asked likelier':>20}")
        for name, (asked, exchanged, likelier) in rows.items():
            print(f"{name:<14}{asked:>16.1f}{exchanged:>12.1f}{likelier:>20.0%}")
        if args.json:
            columns = ("asked", "exchanged", "likelier")
            print(json.dumps({name: dict(zip(columns, row, strict=True)) for name, row in rows.items()}))

    return exit_code(run)


@dataclass(frozen=True)
class Ordered:
    """A picture of two things in a relation, its caption, and the one with the two names exchanged."""

    relation: str
    caption: str
    exchanged: str
    image: np.ndarray


def measure(
    bundle: str | None, dalle: str | None, count: int, seed: int, art: Path | None = None
) -> dict[str, tuple[float, float, float]]:
    """For each relation with an order: a picture's nats under the two captions, and how often the right one wins."""
    from dalle_mini.evaluation.reconstruction import reconstruct
    from dalle_mini.models import DalleBart
    from styled_stages import Bundle

    world = Bundle.load(bundle, art or default_folder())
    pipe = world.pipe
    pictures = styled_pictures(world, count, seed) if world.says_styles else tidy_pictures(world, count, seed)
    _, tokens = reconstruct(pipe.vqgan, np.stack([one.image for one in pictures]))
    model = DalleBart.from_pretrained(pipe.folders["dalle"])
    if dalle is not None:
        nnx.update(model, loaded_parameters(DalleBart, model.config, dalle))

    def nats_of(captions: list[str]) -> np.ndarray:
        if pipe.normalizer is not None:
            captions = [pipe.normalizer(caption) for caption in captions]
        ids, mask = pipe.tokenizer(captions, model.config.text_length)
        return nats(model, ids, mask, np.asarray(tokens, np.int32).reshape(len(pictures), -1))

    asked, other = nats_of([one.caption for one in pictures]), nats_of([one.exchanged for one in pictures])
    rows = defaultdict(list)
    for picture, here, there in zip(pictures, asked, other, strict=True):
        if RELATIONS[picture.relation].forward is not None:
            for name in (picture.relation, "all"):
                rows[name].append((here, there, here < there))
    return {name: tuple(map(float, np.mean(rows[name], axis=0))) for name in (*RELATIONS, "all") if name in rows}


def styled_pictures(world, count: int, seed: int) -> list[Ordered]:
    """For a model of several styles; every other caption says the style."""
    from styled_stages import SIZE, held_out

    return [
        Ordered(
            one.relation,
            one.caption,
            with_names_exchanged(one).caption,
            draw_styled(right_scene(one, world.styles, seed), SIZE, world.art),
        )
        for one in held_out(PAIR, count, world, seed)
    ]


def tidy_pictures(world, count: int, seed: int) -> list[Ordered]:
    """For the second edition, as its training drew them."""
    size, font = world.pipe.vqgan.config.resolution, find_font()
    return [
        Ordered(
            one.relation,
            one.caption,
            scene_caption(one.second, one.relation, one.first, one.color),
            right_image(one, size, font, tidy=True),
        )
        for one in held_out_scenes(count, world.emoji, seed)
    ]


def nats(model, ids: np.ndarray, mask: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """-log of each picture's probability [n]; `tokens` [n, T] are written one after the other, as in drawing."""

    @jax.jit
    def of_batch(ids, mask, tokens):
        start = jnp.full((len(tokens), 1), model.config.decoder_start_token_id, jnp.int32)
        scores = jax.nn.log_softmax(model(ids, mask, jnp.concatenate([start, tokens[:, :-1]], axis=1)))
        return -jnp.sum(jnp.take_along_axis(scores, tokens[..., None], axis=-1), axis=(1, 2))

    parts = (slice(start, start + BATCH) for start in range(0, len(tokens), BATCH))
    return np.concatenate([np.asarray(of_batch(ids[part], mask[part], tokens[part])) for part in parts])


if __name__ == "__main__":
    sys.exit(main())
