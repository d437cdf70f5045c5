"""Make the small art of the tests of what tools/train/fetch_art.py made.

python tests/golden/art/shrink_art.py FOLDER
"""

import io
import json
import sys
import zipfile
from pathlib import Path

from PIL import Image

from dalle_mini.emoji.styles import PAINTABLE, SHIPPED_STYLES, StyleArt, find_style, key
from dalle_mini.emoji.things import PERSONS, WORKERS, things
from dalle_mini.emoji.words import ANNOTATIONS

SIDE = 32  # pixels
HERE = Path(__file__).parent


def shrink(folder: Path) -> None:
    chosen = [one.characters for one in things()[:64]]
    chosen += [
        one.characters
        for one in things()
        if one.characters in (*"😀🌹🌷🌻🌳🍎🍏🚗🏠", PERSONS[2], PERSONS[3], WORKERS[0])
    ]
    keys = {key(one) for one in chosen}
    for name in SHIPPED_STYLES:
        art, target = StyleArt(name, folder), HERE / find_style(name).file_name
        with zipfile.ZipFile(art.path) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
            new.writestr(zipfile.ZipInfo("CREDITS.txt"), old.read("CREDITS.txt"))
            for one in chosen:
                stream = io.BytesIO()
                art.image(one).resize((SIDE, SIDE), Image.Resampling.BOX).quantize(64).save(
                    stream, "PNG", optimize=True
                )
                new.writestr(zipfile.ZipInfo(f"{key(one)}.png"), stream.getvalue())
            hues = {one: hue for one, hue in json.loads(old.read(PAINTABLE)).items() if one in keys}
            new.writestr(zipfile.ZipInfo(PAINTABLE), json.dumps(hues))
    table = json.loads((folder / ANNOTATIONS).read_bytes())
    plain = {one.replace("\ufe0f", "") for one in chosen}
    kept = {one: words for one, words in table.items() if one in plain}
    (HERE / ANNOTATIONS).write_text(json.dumps(kept, ensure_ascii=False, indent=0))


if __name__ == "__main__":
    shrink(Path(sys.argv[1]))
