"""The three networks: `DalleBart`, `VQGAN`, `CLIP`."""

from dalle_mini.models.clip import CLIP
from dalle_mini.models.dalle_bart import DalleBart
from dalle_mini.models.vqgan import VQGAN
from dalle_mini.runtime.xla import ask_for_exact_products

__all__ = ["CLIP", "VQGAN", "DalleBart"]

ask_for_exact_products()
