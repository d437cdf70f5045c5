"""Byte-level BPE tokenizers from captions: one in BART's manner for DALL·E mini, one in CLIP's.

The same captions give the same files, byte for byte. Both tokenizers know all 256 bytes, so nothing is unknown to them.
BPE: Sennrich et al. 2016, https://arxiv.org/abs/1508.07909; on bytes: Radford et al. 2019 (GPT-2).
"""

import json
from collections.abc import Iterable
from pathlib import Path

from dalle_mini.errors import UserError
from dalle_mini.text.tokenizer import CaptionTokenizer

# A pair of symbols seen once is a spelling, not a habit of the captions.
_MIN_FREQUENCY = 2

_BART_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_CLIP_START, _CLIP_END = "<|startoftext|>", "<|endoftext|>"
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_WORD_END = "</w>"


def train_caption_tokenizer(captions: Iterable[str], vocab_size: int, folder: str | Path) -> CaptionTokenizer:
    """Trains a tokenizer for `DalleBart` in BART's manner and writes it to `folder`.

    Args:
        captions: normalised captions (they start with a space, as `CaptionNormalizer` makes them).
        vocab_size: at most so many ids, at least 261; few captions give fewer (see the result's `vocab_size`).
            `<s>` is 0, `<pad>` 1, `</s>` 2, `<unk>` 3 and `<mask>` 4.
        folder: gets tokenizer.json, tokenizer_config.json and special_tokens_map.json.

    Raises:
        UserError: no captions, too small a vocabulary, or a folder that cannot be written.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    captions = _checked(captions, vocab_size, smallest=256 + len(_BART_SPECIALS))
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=_MIN_FREQUENCY,
        special_tokens=[AddedToken(token, lstrip=token == "<mask>", special=True) for token in _BART_SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(captions, trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)

    tokens = {
        "bos": "<s>",
        "eos": "</s>",
        "cls": "<s>",
        "sep": "</s>",
        "pad": "<pad>",
        "unk": "<unk>",
        "mask": "<mask>",
    }
    return _save(backend, tokens, "BartTokenizerFast", folder, add_prefix_space=False)


def train_clip_tokenizer(captions: Iterable[str], vocab_size: int, folder: str | Path) -> CaptionTokenizer:
    """Trains a tokenizer for `CLIP` in the published CLIP's manner and writes it to `folder`.

    It lower-cases and merges white space itself, so captions are given as users write them. Ids: 256 bytes, the same
    256 as ends of words (`a</w>`), the merges, and `<|startoftext|>` and `<|endoftext|>` as the two highest; it pads
    with the latter.

    Args:
        captions: captions, not normalised.
        vocab_size: at most so many ids, at least 514; few captions give fewer (see the result's `vocab_size`).
        folder: gets tokenizer.json, tokenizer_config.json and special_tokens_map.json.

    Raises:
        UserError: no captions, too small a vocabulary, or a folder that cannot be written.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    captions = _checked(captions, vocab_size, smallest=2 * 256 + 2)
    backend = Tokenizer(models.BPE(end_of_word_suffix=_WORD_END))
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = _byte_alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=_MIN_FREQUENCY,
        initial_alphabet=alphabet,
        end_of_word_suffix=_WORD_END,
        show_progress=False,
    )
    backend.train_from_iterator(captions, trainer)

    # The trainer knows only the word ends that it saw and puts special tokens first: only its merges are kept.
    merges = [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]][: vocab_size - 514]
    tokens = alphabet + [byte + _WORD_END for byte in alphabet]
    tokens += dict.fromkeys(first + second for first, second in merges)
    return _save(
        _with_clip_model(backend, tokens, merges),
        {"bos": _CLIP_START, "eos": _CLIP_END, "pad": _CLIP_END, "unk": _CLIP_END},
        "CLIPTokenizerFast",
        folder,
    )


def _with_clip_model(backend, tokens: list[str], merges: list[tuple[str, str]]):
    from tokenizers import AddedToken, decoders, models, processors

    vocab = {token: id for id, token in enumerate([*tokens, _CLIP_START, _CLIP_END])}
    backend.model = models.BPE(vocab, merges, unk_token=_CLIP_END, end_of_word_suffix=_WORD_END)
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in (_CLIP_START, _CLIP_END)])
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(
        (_CLIP_END, vocab[_CLIP_END]),
        (_CLIP_START, vocab[_CLIP_START]),
        trim_offsets=False,
        add_prefix_space=False,
    )
    return backend


def _byte_alphabet() -> list[str]:
    """The 256 characters that stand for bytes, printable ASCII first; the library lists them in any order."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _checked(captions: Iterable[str], vocab_size: int, smallest: int) -> list[str]:
    if vocab_size < smallest:
        raise UserError(f"vocab_size={vocab_size}: a byte-level tokenizer of this kind needs at least {smallest}")
    captions = list(captions)
    if not captions:
        raise UserError("captions: none given to train a tokenizer on")
    return captions


def _save(backend, tokens: dict[str, str], tokenizer_class: str, folder: str | Path, **options) -> CaptionTokenizer:
    special_tokens = {f"{role}_token": token for role, token in tokens.items()}
    settings = {
        "special_tokens_map.json": special_tokens,
        "tokenizer_config.json": {**special_tokens, **options, "tokenizer_class": tokenizer_class},
    }
    tokenizer = CaptionTokenizer(backend, settings, source=str(Path(folder) / "tokenizer.json"))
    tokenizer.save(folder)
    return tokenizer
