"""Why an example is not used, in the words of the manifest, the report and the docs.

A source gives its reasons in `Example.problem`; filters and decoding return theirs.
"""

from dalle_mini.imaging.problems import (
    EMPTY_FILE,
    IMAGE_DAMAGED,
    NO_RANGE,
    NOT_AN_IMAGE,
    TOO_MANY_PIXELS,
    TOO_MUCH,
    UNREAD_NUMBERS,
)

# The source cannot read it.
NO_IMAGE = "no picture"
FILE_TOO_LARGE = "file too large"
CANNOT_READ = "cannot be read"
CUT_SHORT = "archive cut short"
DAMAGED = "archive damaged"
ROW_DAMAGED = "row damaged"
LEAVES_FOLDER = "path leaves the pile"
NO_FILE = "not a regular file"
EXPANDS = "expands too far"
DUPLICATE_KEY = "duplicate key"

# The caption filters refuse it.
NO_CAPTION = "no caption"
CAPTION_TOO_SHORT = "caption too short"
CAPTION_TOO_LONG = "caption too long"
NOT_ENGLISH = "caption not English"

# Its columns are refused.
WHERE_FALSE = "where: not met"
WHERE_MISSING = "where: a value is missing"
CLIP_SCORE = "CLIP score out of range"

# The image filters refuse it. The reasons of decoding are in `imaging/problems.py`.
IMAGE_TOO_SMALL = "picture too small"
ASPECT_RATIO = "aspect ratio"

# It repeats another image of the dataset.
DUPLICATE = "duplicate picture"
NEAR_DUPLICATE = "near-duplicate picture"

REASONS: dict[str, str] = {
    NO_IMAGE: "a caption or a row has no image",
    EMPTY_FILE: "the image file has 0 bytes",
    FILE_TOO_LARGE: "the image file or its text is above the size limit (64 MB for an image)",
    CANNOT_READ: "the file or row is missing or may not be read, or the connection failed",
    CUT_SHORT: "a tar ends early; counted once per tar",
    DAMAGED: "invalid bytes; counted once per damaged stretch of a tar or file, and once per row of Parquet",
    ROW_DAMAGED: "a row of a list has more values than columns, or is not a JSON object",
    LEAVES_FOLDER: "a path, an address or a caption's link leads out of the tar, the folder or the dataset",
    EXPANDS: "the rows or values of a Parquet file are far larger than the file",
    NO_FILE: "a link, pipe, device or folder is in the place of a file",
    DUPLICATE_KEY: "an earlier image, which is kept, has the same key",
    NO_CAPTION: "there is no caption, or nothing is left after cleaning",
    CAPTION_TOO_SHORT: "fewer characters than --min-caption",
    CAPTION_TOO_LONG: "more characters than --max-caption",
    NOT_ENGLISH: "--english: another script, or almost certainly another language",
    WHERE_FALSE: "the condition of --where is false",
    WHERE_MISSING: "a column of --where has no value in this row, or a value of another type",
    CLIP_SCORE: "below --min-clip-score or above --max-clip-score",
    NOT_AN_IMAGE: "the format is not one that is read",
    IMAGE_DAMAGED: "the image is truncated or cannot be decoded",
    TOO_MANY_PIXELS: "the header claims more pixels than --max-pixels, or a side of a million; it is not decoded",
    TOO_MUCH: "the file has more scans, chunks or tiles than any real image; it is not decoded",
    UNREAD_NUMBERS: "a number format that Pillow does not read, such as 64-bit floats in TIFF or 12 bits in JPEG",
    NO_RANGE: "all floats or 32-bit integers are equal, so black and white are undefined",
    IMAGE_TOO_SMALL: "the shorter side has fewer pixels than --min-side",
    ASPECT_RATIO: "the longer side is more than --max-aspect times the shorter side",
    DUPLICATE: "an earlier image has the same pixels",
    NEAR_DUPLICATE: "the perceptual hash of an earlier image is within --near-distance bits",
}
