"""Write the NotoColorEmoji.ttf beside this file: `python shrink_font.py FONT`, where FONT is Debian's.

Every glyph stays, with a smaller bitmap: half as many dots along each side and 32 colours for the emoji of `EVERYDAY`
and those that the shipped model knows, a quarter and 16 colours for the others. Needs fonttools.
"""

import io
import json
import sys
from pathlib import Path

from fontTools.ttLib import TTFont
from PIL import Image

from dalle_mini.emoji.art import EVERYDAY, _known_emoji
from dalle_mini.pipeline import SHIPPED


def smaller(png: bytes, block: int, colors: int) -> bytes:
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    few = image.convert("RGBa").resize([side // block for side in image.size], Image.Resampling.BOX).convert("RGBA")
    few = few.quantize(colors, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    written = io.BytesIO()
    few.resize(image.size, Image.Resampling.NEAREST).save(written, "png", optimize=True)
    return written.getvalue()


font = TTFont(sys.argv[1])
shipped = set(json.loads((SHIPPED / "emoji.json").read_text()))
fine = "".join(EVERYDAY.values()) + "".join(characters[0] for characters, name in _known_emoji() if name in shipped)
names = font.getBestCmap()
glyphs = {names[ord(character)] for character in fine}
for name, glyph in font["CBDT"].strikeData[0].items():
    glyph.imageData = smaller(glyph.imageData, *((2, 32) if name in glyphs else (4, 16)))
font.save(Path(__file__).with_name("NotoColorEmoji.ttf"))
