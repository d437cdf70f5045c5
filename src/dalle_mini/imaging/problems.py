"""Why the bytes of an image are not decoded, in the words of the manifest, the report and the docs."""

EMPTY_FILE = "empty file"
NOT_A_PICTURE = "not a picture"
PICTURE_DAMAGED = "picture damaged"
TOO_MANY_PIXELS = "too many pixels"
TOO_MUCH = "too much to decode"
UNREAD_NUMBERS = "kind of pixels not read"
NO_RANGE = "no range of values"
