"""How often does the model draw the emoji that was asked for, on the colour that was asked for?

    python benchmarks/emoji_quality.py
    python benchmarks/emoji_quality.py --model runs/emoji/bundle --prompts 20 --json

Asks for pairs of emoji and background colour that training never showed together ("a snail on a yellow background"),
draws some candidates each, ranks them with CLIP, and judges them by the nearest of all the emoji that the font draws.
Prints the shares that were right and what was mistaken for what, and writes `contact_sheet.png` and `quality.json`,
with every judgement, into the output folder. Also measured: what the VQGAN loses on held-out pictures.
"""

import argparse
import dataclasses
import json
import math
import os
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dalle_mini.commands.terminal import Parser
from dalle_mini.data.emoji import Emoji, EmojiPictures, all_emoji, everyday_emoji, find_font, render
from dalle_mini.errors import UserError
from dalle_mini.evaluation.emoji import EmojiJudge, EmojiPrompt, Judgement, held_out_prompts, mistakes, pick_gain, score
from dalle_mini.output import check_writable
from dalle_mini.settings import GenerationSettings

EMOJI_LIST = "emoji.json"  # in a bundle: the names of the emoji that the model was trained on
MISTAKES_SHOWN = 40

SIDE, FRAME, GAP, COLUMNS = 128, 6, 10, 10  # of the contact sheet; SIDE is the least side of a picture, pixels
FONT_SIZE, LINE, LINES, CHARACTERS = 13, 16, 3, 21
RIGHT, ONLY_EMOJI, WRONG = "#1a9641", "#f0a000", "#d7191c"


def main(argv: list[str] | None = None) -> int:
    try:
        measure(parse(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    head, _, rest = __doc__.partition("\n")
    parser = Parser(description=head, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", metavar="FOLDER", help="a bundle, or DalleBart's folder (default: the shipped model)")
    add("--vqgan", metavar="FOLDER", help="VQGAN's folder (default: the bundle's)")
    add("--clip", metavar="FOLDER", help="CLIP's folder (default: the bundle's)")
    add("--prompts", metavar="N", type=int, default=100, help="held-out pairs (default: 100)")
    add("--candidates", metavar="N", type=int, default=16, help="pictures drawn for each prompt (default: 16)")
    add("--seed", metavar="N", type=int, default=0, help="of the choice of prompts and of the pictures (default: 0)")
    add("--guidance", metavar="X", type=float, help="(default: the model's)")
    add("--temperature", metavar="X", type=float, help="(default: the model's)")
    add("--top-k", metavar="K", type=int, help="(default: the model's)")
    add("--top-p", metavar="P", type=float, help="(default: off)")
    add("--reconstructions", metavar="N", type=int, default=1024, help="pictures for the VQGAN (default: 1024)")
    add("--font", metavar="FILE", help="NotoColorEmoji.ttf (default: where Debian puts it)")
    add("--output", metavar="FOLDER", default="runs/emoji_quality", help="(default: runs/emoji_quality)")
    add("--json", action="store_true", help="end with one line of JSON")
    return parser.parse_args(argv)


def measure(args: argparse.Namespace) -> None:
    started = time.perf_counter()
    settings = GenerationSettings(
        candidates=args.candidates,
        keep=args.candidates,
        seed=args.seed,
        guidance=args.guidance,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
    )
    if args.reconstructions < 1:
        raise UserError(f"reconstructions {args.reconstructions}: at least 1 picture is needed")
    output = check_writable(args.output)
    font = find_font(args.font)

    from dalle_mini.pipeline import DalleMini  # after the checks: jax and the weights take seconds

    say("loading the model")
    pipe = DalleMini.from_pretrained(args.model, vqgan=args.vqgan, clip=args.clip)
    known = known_emoji(pipe.folders["dalle"], font)
    prompts = held_out_prompts(args.prompts, known, args.seed)
    size = pipe.vqgan.config.resolution
    judge = EmojiJudge(size, font=font, progress=every(1000, "emoji drawn to judge by"))

    vqgan = measure_vqgan(pipe.vqgan, judge, prompts, known, size, args.reconstructions, font)
    judged, picks = draw_and_judge(pipe, judge, prompts, settings)
    scores = score(prompts, judged)
    gain, error = pick_gain(
        [[one.is_emoji(prompt) for one in row] for prompt, row in zip(prompts, judged, strict=True)]
    )

    figures = {**dataclasses.asdict(scores), "pick_gain": gain, "pick_gain_error": error, **vqgan}
    figures |= {"prompts": args.prompts, "candidates": args.candidates}
    figures |= {"emoji_known": len(known), "reconstructions": args.reconstructions}
    figures |= {name: getattr(settings, name) for name in ("seed", "top_p")}
    figures |= {name: getattr(picks[0].settings, name) for name in ("guidance", "temperature", "top_k")}
    figures |= pipe.provenance()
    figures["seconds"] = round(time.perf_counter() - started, 1)
    write(output, figures, prompts, judged, contact_sheet(prompts, judged, [result.images[0] for result in picks]))
    print_report(figures, prompts, judged)
    print(f"\n{output / 'contact_sheet.png'}\n{output / 'quality.json'}\n{figures['seconds']:.0f} seconds")
    if args.json:
        print(json.dumps(figures))


def known_emoji(dalle: Path, font: Path) -> list[Emoji]:
    """The emoji that the model was trained on: those of the bundle's `emoji.json`, or the everyday ones."""
    path = next((path for path in (dalle.parent / EMOJI_LIST, dalle / EMOJI_LIST) if path.is_file()), None)
    if path is None:
        return everyday_emoji(font)
    try:
        names = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); a list of emoji names is expected") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f'{path}: a list of emoji names is expected, such as ["snail", "red apple"]')
    by_name = {one.name: one for one in all_emoji(font)}
    if unknown := [name for name in names if name not in by_name]:
        raise UserError(f"{path}: no emoji of {font.name} has the name {unknown[0]!r}")
    return [by_name[name] for name in dict.fromkeys(names)]


def measure_vqgan(vqgan, judge: EmojiJudge, prompts, known, size: int, count: int, font: Path) -> dict[str, float]:
    """Losses on held-out pictures, and how the judge does on the prompts' own pictures after the VQGAN: the ceiling."""
    from dalle_mini.data.images import to_uint8
    from dalle_mini.evaluation.reconstruction import codebook_use, psnr, reconstruct

    source = EmojiPictures(size, length=count, emoji=known, split="heldout", font=font, jitter=1)
    images, _ = source.batch(range(count))
    pictures, tokens = reconstruct(vqgan, images, every(256, "pictures through the VQGAN"))
    asked = np.stack([render(prompt.emoji, prompt.color, size, font=font) for prompt in prompts])
    seen = judge(to_uint8(reconstruct(vqgan, asked)[0]))
    ceiling = score(prompts, [[one] for one in seen])
    return {
        "vqgan_psnr": psnr(images, pictures),
        "codebook_use": codebook_use(tokens, vqgan.config.n_embed),
        "reconstructed_single_accuracy": ceiling.single_accuracy,
        "reconstructed_background_accuracy": ceiling.background_accuracy,
    }


def draw_and_judge(pipe, judge: EmojiJudge, prompts: list[EmojiPrompt], settings: GenerationSettings):
    """Judgements of each prompt's candidates, best first, and the pipeline's results."""
    judged, results = [], []
    started = time.perf_counter()
    right = 0
    stream = pipe.generate_each([prompt.caption for prompt in prompts], settings)
    for number, (prompt, result) in enumerate(zip(prompts, stream, strict=True), 1):
        row = judge(np.stack([np.asarray(image) for image in result.images]))
        judged.append(row)
        results.append(result)
        right += row[0].is_emoji(prompt)
        hits = sum(one.is_emoji(prompt) for one in row)
        left = (time.perf_counter() - started) / number * (len(prompts) - number)
        verdict = "right" if row[0].is_emoji(prompt) else f"judged {row[0].name}"
        verdict += "" if row[0].is_color(prompt) else f" on {row[0].color}"
        say(
            f"[{number}/{len(prompts)}] {prompt.caption}: {verdict}; {hits} of {len(row)} candidates right, "
            f"{right} of {number} picks so far, {left / 60:.1f} min left"
        )
    return judged, results


def print_report(figures: dict, prompts: list[EmojiPrompt], judged: list[list[Judgement]]) -> None:
    rows = {
        f"CLIP's pick of {figures['candidates']}": "",
        "a random candidate (the mean over all)": "random_",
        "any candidate (a perfect ranking)": "any_",
        "the VQGAN's copy of the right picture": "reconstructed_",
    }
    print(f"\n{figures['prompts']} held-out prompts{'':22}right emoji   right background")
    for label, kind in rows.items():
        emoji, color = figures[f"{kind}single_accuracy"], figures[f"{kind}background_accuracy"]
        print(f"{label:<40} {emoji:>11.1%} {color:>18.1%}")
    error = figures["pick_gain_error"]
    spread = "" if error is None else f" ± {error:.1%} (standard error over prompts)"
    print(f"{'the pick minus a random candidate':<40} {figures['pick_gain']:>+11.1%}{spread}")
    print(f"\nVQGAN on {figures['reconstructions']} held-out pictures: ", end="")
    print(f"PSNR {figures['vqgan_psnr']:.2f} dB, codebook use {figures['codebook_use']:.1%}")
    for what, background in (("emoji", False), ("background", True)):
        found = mistakes(prompts, judged, background)
        total = sum(one.count for one in found)
        print(f"\nwrong {what}: {total} of {sum(map(len, judged))} candidates (* CLIP's pick)")
        width = max((len(one.caption) for one in found[:MISTAKES_SHOWN]), default=0)
        for one in found[:MISTAKES_SHOWN]:
            print(f"{one.count:>5} {'*' if one.picked else ' '} {one.caption:<{width}}  judged {one.judged}")
        if len(found) > MISTAKES_SHOWN:
            rest = found[MISTAKES_SHOWN:]
            print(f"{sum(one.count for one in rest):>5}   in {len(rest)} more rows: see quality.json")


def contact_sheet(
    prompts: list[EmojiPrompt], judged: list[list[Judgement]], pictures: list[Image.Image]
) -> Image.Image:
    """CLIP's pick for each prompt, framed by the verdict, with the caption and what the judge saw where it is wrong."""
    factor = math.ceil(SIDE / pictures[0].width)
    side = pictures[0].width * factor
    columns = min(COLUMNS, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    width, height = side + 2 * FRAME + GAP, side + 2 * FRAME + 2 * LINES * LINE + GAP
    font = ImageFont.load_default(FONT_SIZE)
    characters = CHARACTERS * side // SIDE
    sheet = Image.new("RGB", (max(columns * width + GAP, 3 * SIDE), rows * height + 2 * LINE + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    x = GAP
    for text, color in (("right", RIGHT), ("wrong background", ONLY_EMOJI), ("wrong emoji", WRONG)):
        draw.rectangle((x, GAP, x + FONT_SIZE, GAP + FONT_SIZE), fill=color)
        draw.text((x + LINE + 3, GAP - 1), text, fill="black", font=font)
        x += int(font.getlength(text)) + 3 * LINE
    for index, (prompt, row, picture) in enumerate(zip(prompts, judged, pictures, strict=True)):
        left, top = GAP + index % columns * width, 2 * LINE + GAP + index // columns * height
        pick = row[0]
        color = WRONG if not pick.is_emoji(prompt) else RIGHT if pick.is_color(prompt) else ONLY_EMOJI
        # The white line within the frame tells a red frame from a red background.
        for inset, fill in ((0, color), (FRAME - 2, "white")):
            far = side + 2 * FRAME - 1 - inset
            draw.rectangle((left + inset, top + inset, left + far, top + far), fill=fill)
        enlarged = picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        sheet.paste(enlarged, (left + FRAME, top + FRAME))
        lines = [(line, "black") for line in wrap(prompt.caption, characters)]
        if color != RIGHT:
            lines += [(line, WRONG) for line in wrap(f"judged: {pick.name} on {pick.color}", characters)]
        for number, (line, ink) in enumerate(lines):
            draw.text((left, top + side + 2 * FRAME + 2 + number * LINE), line, fill=ink, font=font)
    return sheet


def wrap(text: str, characters: int) -> list[str]:
    return textwrap.wrap(text, characters, max_lines=LINES, placeholder=" ...")


def write(output: Path, figures: dict, prompts, judged: list[list[Judgement]], sheet: Image.Image) -> None:
    """The contact sheet, and the figures with every judgement; each file whole or not at all."""
    details = [
        {**dataclasses.asdict(prompt), "judged": [dataclasses.asdict(one) for one in row]}
        for prompt, row in zip(prompts, judged, strict=True)
    ]
    partial = output / f".partial.{os.getpid()}"
    try:
        output.mkdir(parents=True, exist_ok=True)
        sheet.save(partial, format="PNG")
        partial.rename(output / "contact_sheet.png")
        partial.write_text(json.dumps({**figures, "details": details}, indent=1, ensure_ascii=False) + "\n", "utf-8")
        partial.rename(output / "quality.json")
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error}") from None
    finally:
        partial.unlink(missing_ok=True)


def every(count: int, what: str):
    """A progress callback that says a line each `count` steps and at the end."""

    def report(done: int, total: int) -> None:
        if done % count == 0 or done == total:
            say(f"{done} of {total} {what}")

    return report


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
