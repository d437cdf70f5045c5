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
    NO_IMAGE: "a caption or a row without a picture",
    EMPTY_FILE: "the picture's file has 0 bytes",
    FILE_TOO_LARGE: "the picture's file is larger than is read (64 MB), or its text is",
    CANNOT_READ: "the file or row is gone, may not be read, or the connection failed",
    CUT_SHORT: "a tar ends before its end; counted once for each tar",
    DAMAGED: "bytes that make no sense: counted once for a stretch of a tar or a file, and for each row of Parquet",
    ROW_DAMAGED: "a row of a metadata file that has more values than columns, or is no JSON object",
    LEAVES_FOLDER: "a path, an address or the link of a caption that leads out of the tar, the folder or the data set",
    EXPANDS: "Parquet whose rows or values are out of all proportion to the file's bytes",
    NO_FILE: "a link, pipe, device or folder where a file should be",
    DUPLICATE_KEY: "an earlier picture, which is kept, has the same key",
    NO_CAPTION: "no caption, or nothing left of it once cleaned",
    CAPTION_TOO_SHORT: "fewer characters than --min-caption",
    CAPTION_TOO_LONG: "more characters than --max-caption",
    NOT_ENGLISH: "--english: written in another script, or surely in another language",
    WHERE_FALSE: "--where is false",
    WHERE_MISSING: "a column of --where has no value in this row, or one of another type",
    CLIP_SCORE: "below --min-clip-score or above --max-clip-score",
    NOT_AN_IMAGE: "no format that is read, whatever the file is called",
    IMAGE_DAMAGED: "cut short, or otherwise not to be decoded",
    TOO_MANY_PIXELS: "more pixels than --max-pixels, or a side of a million, by its header: it is not decoded",
    TOO_MUCH: "more scans, chunks or tiles than an honest picture has: it is not decoded",
    UNREAD_NUMBERS: "numbers that Pillow does not read, such as floats of 64 bits in TIFF or 12 bits in JPEG",
    NO_RANGE: "floats or whole numbers of 32 bits that are all the same: nothing says what is black or white",
    IMAGE_TOO_SMALL: "its shorter side has fewer pixels than --min-side",
    ASPECT_RATIO: "its longer side is more than --max-aspect times its shorter",
    DUPLICATE: "an earlier picture has the same pixels",
    NEAR_DUPLICATE: "an earlier picture's perceptual hash is within --near-distance bits",
}
