"""Metrics of weights: the quality of the images that a model draws, and the loss of a VQGAN."""

from dalle_mini.emoji.judge import (
    EmojiJudge,
    EmojiPrompt,
    EmojiScores,
    Judgement,
    Mistake,
    held_out_prompts,
    mistakes,
    pick_gain,
    score,
)
from dalle_mini.evaluation.reconstruction import codebook_use, perplexity, psnr, reconstruct, ssim

__all__ = [
    "EmojiJudge",
    "EmojiPrompt",
    "EmojiScores",
    "Judgement",
    "Mistake",
    "codebook_use",
    "held_out_prompts",
    "mistakes",
    "perplexity",
    "pick_gain",
    "psnr",
    "reconstruct",
    "score",
    "ssim",
]
