"""Caption -> normalised caption -> token ids."""

from dalle_mini.text.normalize import CaptionNormalizer
from dalle_mini.text.tokenizer import CaptionTokenizer

__all__ = ["CaptionNormalizer", "CaptionTokenizer"]
