"""Train the two tokenizers of the emoji model on its captions, and list their words for the normalizer.

    python tools/train/make_tokenizers.py runs/emoji/tokenizers

Writes `dalle/` (BART manner, normalised captions, with words.txt) and `clip/` (CLIP manner, raw captions).
"""

import collections
import re
from pathlib import Path

from entry import Pictures, parser, user_errors

from dalle_mini.runtime.files import write_whole
from dalle_mini.text import CaptionNormalizer
from dalle_mini.text.train_tokenizer import train_caption_tokenizer, train_clip_tokenizer

VOCABULARY = 4096  # every word of the captions is one token
CAPTIONS = 50_000


def make(out: Path) -> None:
    source = Pictures("train", 0).source()
    corpus = [*(one.name for one in source.emoji), *(source.caption(index) for index in range(CAPTIONS))]
    normalize = CaptionNormalizer(None)
    captions = [normalize(caption) for caption in corpus]
    train_caption_tokenizer(captions, VOCABULARY, out / "dalle")
    train_clip_tokenizer(corpus, VOCABULARY, out / "clip")
    words = collections.Counter(word for caption in captions for word in re.findall(r"[a-z]+", caption))
    write_whole(out / "dalle" / "words.txt", "".join(f"{word} {count}\n" for word, count in words.most_common()))


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("out", type=Path)
    with user_errors():
        make(options.parse_args().out)
