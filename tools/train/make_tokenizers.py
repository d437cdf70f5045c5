"""Train the two tokenizers of the emoji model on its captions, and list the words that these have.

    python tools/train/make_tokenizers.py runs/emoji/tokenizers

Writes `dalle/` (BART manner, normalised captions) and `clip/` (CLIP manner, raw captions). Beside the first are
words.txt, by which the normalizer splits hashtags, and vocabulary.json, by which `generate` tells unknown words.
"""

import collections
import re
from pathlib import Path

from entry import Pictures, World, parser, user_errors

from dalle_mini.emoji.nouns import is_counted, plural
from dalle_mini.emoji.phrases import MEANINGLESS, TRAILING
from dalle_mini.emoji.words import UNSAID, read_annotations
from dalle_mini.runtime.files import write_whole
from dalle_mini.text import CaptionNormalizer
from dalle_mini.text.known_words import NEAREST, KnownWords, related_words
from dalle_mini.text.train_tokenizer import train_caption_tokenizer, train_clip_tokenizer

WORD = re.compile(r"[a-z]+")
VOCABULARY = 4096  # every word of the captions is one token
CAPTIONS = 50_000
COMMON = 1 / 1250  # captions that have a word: slips of the pen and nonsense words are rarer


def make(out: Path, world: World, captions: int = CAPTIONS) -> None:
    source = Pictures("train", 0, world).source()
    corpus = [*(one.name for one in source.emoji), *(source.caption(index) for index in range(captions))]
    normalize = CaptionNormalizer(None)
    captions = [normalize(caption) for caption in corpus]
    train_caption_tokenizer(captions, VOCABULARY, out / "dalle")
    train_clip_tokenizer(corpus, VOCABULARY, out / "clip")
    words = collections.Counter(word for caption in captions for word in WORD.findall(caption))
    known = known_words(world, {word for word, count in words.items() if count >= COMMON * len(captions)})
    # Last, by which the stage is known to be done.
    known.save(out / "dalle")
    listed = [(word, count) for word, count in words.most_common() if known.has(word)]
    write_whole(out / "dalle" / "words.txt", "".join(f"{word} {count}\n" for word, count in listed))


def known_words(world: World, common: set[str]) -> KnownWords:
    """The words of the things, those that captions say often, and what each other word of the CLDR is near to."""
    lexicon = world.words()
    nouns = [*lexicon.general, *(name for names in lexicon.names.values() for name in names)]
    plurals = [plural(text) for text in nouns if is_counted(text)]
    texts = [*nouns, *plurals, *lexicon.keywords, *MEANINGLESS, *TRAILING]
    normalize = CaptionNormalizer(None)
    words = common | {word for text in texts for word in WORD.findall(normalize(text))}
    groups = [
        [word for word in WORD.findall(normalize(" ".join([name, *others]))) if word not in UNSAID]
        for name, others in read_annotations(world.folder).values()
    ]
    # A noun helps more than another word that is said beside it.
    related = related_words(groups, words)
    related |= {
        word: near for word, near in related_words(groups, words.intersection(nouns)).items() if word in related
    }
    related |= {text: lexicon.relatives(text)[:NEAREST] for text in [*nouns, *lexicon.keywords] if " " not in text}
    return KnownWords(words, related)


if __name__ == "__main__":
    options = parser(__doc__, world=True)
    options.add_argument("out", type=Path)
    with user_errors():
        args = options.parse_args()
        make(args.out, World.load(args.world))
