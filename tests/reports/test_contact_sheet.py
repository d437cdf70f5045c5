import numpy as np
from PIL import Image, ImageColor

from dalle_mini.reports.contact_sheet import COLUMNS, FRAME, GAP, RIGHT, SIDE, WRONG, Entry, contact_sheet


def test_pictures_stand_in_rows_in_frames_of_their_verdict():
    picture = Image.new("RGB", (64, 64), "blue")
    entries = [Entry(picture, "a cat", RIGHT), *[Entry(picture, "a dog", WRONG, "judged: wolf")] * COLUMNS]
    sheet = np.asarray(contact_sheet(entries, {"right": RIGHT, "wrong": WRONG}))
    frames = [np.argwhere((sheet == ImageColor.getrgb(color)).all(-1)) for color in (RIGHT, WRONG)]
    assert all(len(pixels) > 4 * SIDE for pixels in frames)
    blue = (sheet == (0, 0, 255)).all(-1)
    assert blue.sum() == len(entries) * SIDE**2
    assert np.argwhere(blue)[:, 1].min() == GAP + FRAME
    plain = np.asarray(contact_sheet([Entry(picture, "a cat")]))
    assert len(plain) < len(sheet) / 2  # one row, no legend, no notes


def test_captions_are_cut_at_so_many_lines():
    picture, caption = Image.new("RGB", (128, 128)), "a snail " * 40
    few, many = (contact_sheet([Entry(picture, caption)], lines=lines) for lines in (2, 5))
    assert many.height > few.height
