"""Token ids -> image tokens -> the best pictures."""

from dalle_mini.generation.decode import generate_tokens, stream_tokens

__all__ = ["generate_tokens", "stream_tokens"]
