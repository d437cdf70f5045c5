"""Why the bytes of an image are not decoded: the words of the manifest, the report and the docs, and the exception."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

EMPTY_FILE = "empty file"
NOT_AN_IMAGE = "not a picture"
IMAGE_DAMAGED = "picture damaged"
TOO_MANY_PIXELS = "too many pixels"
TOO_MUCH = "too much to decode"
UNREAD_NUMBERS = "kind of pixels not read"
NO_RANGE = "no range of values"

MESSAGES = {
    EMPTY_FILE: "cannot read the image: the file is empty",
    NOT_AN_IMAGE: f"not an image that can be read (formats: {', '.join(FORMATS)})",
    IMAGE_DAMAGED: "cannot read the image",
    TOO_MANY_PIXELS: "the image is too large; scale it down",
    TOO_MUCH: "the image would take too long to decode",
    UNREAD_NUMBERS: "the image's numbers are of a kind that is not read",
    NO_RANGE: "the image's numbers, floats or of 32 bits, are all the same, so that none is black or white",
}


class BadImage(Exception):
    """An image that is not decoded.

    Attributes:
        reason: one of this file's, or of the caller's own check of the sides.
        detail: more about it, or "".
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail
