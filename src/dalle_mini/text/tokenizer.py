"""Captions -> token ids, for the BART-style tokenizers of DALL·E mini and the tokenizers of CLIP alike.

Everything is in `tokenizer.json` but the name of the padding token; the Rust library `tokenizers` reads it, and
transformers with its seconds of import time stays out of the way to an image. For CLIP's tokenizer the older files,
`vocab.json` and `merges.txt`, are enough, because everything else is the same for every CLIP.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dalle_mini.errors import UserError
from dalle_mini.runtime import files, parsing
from dalle_mini.runtime.hashing import short_hash
from dalle_mini.runtime.limits import check
from dalle_mini.text.tokenizer_json import check_ids, checked

_SETTINGS_FILES = ("special_tokens_map.json", "tokenizer_config.json")

# CLIP's special tokens, and what it takes for words: endings after an apostrophe, letters, one digit, other signs.
_CLIP_START, _CLIP_END = "<|startoftext|>", "<|endoftext|>"
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


class CaptionTokenizer:
    """Turns captions into padded rows of token ids. Build it with `from_pretrained`.

    Args:
        backend: a `tokenizers.Tokenizer` whose post-processor puts a start token first and an end token last.
        settings: the contents of special_tokens_map.json and tokenizer_config.json by file name, as far as they exist.
        source: what errors call this tokenizer, such as the path of its file.

    Attributes:
        pad_token, pad_id: what fills the rows on the right; CLIP pads with its end token.
        end_id: the token that ends every caption.
        vocab_size: the highest id plus one, special tokens included.
    """

    def __init__(self, backend, settings: dict[str, dict] | None = None, source: str = "tokenizer"):
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._settings = settings or {}
        self._source = source
        self._rows: int | None = None

        with _blaming(source, "not a usable tokenizer"):
            self._frame = backend.encode("").ids  # start and end token
            vocab = backend.get_vocab()
        if not self._frame:
            raise UserError(f"{source}: it adds no start and end tokens; a caption tokenizer needs a post_processor")
        unknown = [id for id in self._frame if backend.id_to_token(id) is None]
        if unknown:
            raise UserError(f"{source}: its post_processor adds the id {unknown[0]}, which no token has")
        self.end_id = self._frame[-1]
        self.vocab_size = max(vocab.values()) + 1
        self.pad_token, self.pad_id = self._find_pad_token()

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
    ) -> "CaptionTokenizer":
        """Reads `tokenizer.json`, and the padding token's name from the JSON files beside it.

        Where it is missing, CLIP's `vocab.json` and `merges.txt` will do. `source`, a folder or a repository of the
        Hub, and the other arguments are as in `weights.hub.resolve`.

        Raises:
            UserError: a file is missing or broken, or the padding token is not in the vocabulary.
        """
        from dalle_mini.weights.hub.repository import Needs, blaming_cache, resolve

        needs = Needs(weights=False, tokenizer=True)
        folder = resolve(
            source, needs, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
        with blaming_cache(folder):
            return cls._read(folder)

    @classmethod
    def _read(cls, folder: Path) -> "CaptionTokenizer":
        from tokenizers import Tokenizer

        path, vocab, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
        in_parts = not path.is_file() and vocab.is_file() and merges.is_file()
        if not (in_parts or path.is_file()):
            raise UserError(f"{path}: no such file; a tokenizer folder needs a tokenizer.json")
        path = vocab if in_parts else path
        with _blaming(path, "not a readable tokenizer"):
            if in_parts:
                backend = _clip_backend(vocab, merges)
            else:
                backend = Tokenizer.from_str(checked(parsing.read_bytes(path, "tokenizer_bytes")))
        beside = {name: path.with_name(name) for name in _SETTINGS_FILES}
        settings = {name: parsing.read_object(file, "config_bytes") for name, file in beside.items() if file.exists()}
        return cls(backend, settings, source=str(path))

    def __call__(self, captions: Sequence[str], max_length: int = 64) -> tuple[np.ndarray, np.ndarray]:
        """Encodes captions, truncated to `max_length` tokens (the end token stays last) and padded on the right.

        Names of special tokens inside a caption are read as those tokens, as the published tokenizers do.

        Returns:
            input_ids, attention_mask (1 on tokens, 0 on padding): int32 `[len(captions), max_length]`.

        Raises:
            UserError: `max_length` leaves no room for the start and end tokens, or a caption is not a string.
        """
        if isinstance(captions, str):
            raise UserError("captions: expected a list of captions, got a single string; put it in a list")
        if max_length < len(self._frame):
            raise UserError(f"max_length={max_length}: a caption needs at least {len(self._frame)} tokens")

        input_ids = np.full((len(captions), max_length), self.pad_id, np.int32)
        attention_mask = np.zeros((len(captions), max_length), np.int32)
        for row, ids in enumerate(self._encode(captions)):
            if len(ids) > max_length:
                ids = ids[: max_length - 1] + ids[-1:]
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
        return input_ids, attention_mask

    def count(self, caption: str) -> int:
        """Number of tokens of a caption before truncation, start and end tokens included."""
        return len(self._encode([caption])[0])

    def check_vocab_size(self, rows: int) -> None:
        """Checks that an embedding table of `rows` rows has a row for every token that a caption can become.

        Special tokens that frame no caption, such as `<mask>`, may lie beyond the table (published tokenizers have
        been seen with one more id than the model has rows): from now on they are dropped from captions.

        Raises:
            UserError: other ids are beyond the table; a lookup would silently give NaN.
        """
        specials = {id for id, token in self._backend.get_added_tokens_decoder().items() if token.special}
        droppable = specials - {*self._frame, self.pad_id}
        highest = max(set(self._backend.get_vocab().values()) - droppable, default=-1)
        if highest >= rows:
            raise UserError(
                f"{self._source}: token ids go up to {highest} but the model's text embedding has {rows} rows; "
                "tokenizer and model do not belong together"
            )
        self._rows = rows

    @property
    def digest(self) -> str:
        """A short hash of what tells this tokenizer from another: its `tokenizer.json`, and how it pads."""
        with _blaming(self._source, "it cannot be written"):
            text = self._backend.to_str()
        return short_hash(f"{text} {self.pad_id}")

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer.json and the settings files into `folder`, which is made if needed.

        Raises:
            UserError: the folder cannot be written.
        """
        with _blaming(self._source, "it cannot be written"):
            contents = {"tokenizer.json": self._backend.to_str(pretty=True)}
        settings = self._settings or {_SETTINGS_FILES[0]: {"pad_token": self.pad_token}}
        contents |= {name: json.dumps(one, indent=2, ensure_ascii=False) + "\n" for name, one in settings.items()}
        for name, content in contents.items():
            files.write_whole(Path(folder) / name, content)

    def _encode(self, captions: Sequence[str]) -> list[list[int]]:
        texts = [_as_unicode(caption) for caption in captions]
        with _blaming(self._source, "it cannot read a caption"):
            encodings = self._backend.encode_batch_fast(texts)  # no offsets
        if self._rows is None or self._rows >= self.vocab_size:
            return [encoding.ids for encoding in encodings]
        return [[id for id in encoding.ids if id < self._rows] for encoding in encodings]

    def _find_pad_token(self) -> tuple[str, int]:
        for name, content in self._settings.items():
            token = content.get("pad_token")
            if isinstance(token, dict):
                token = token.get("content")
            if isinstance(token, str):
                pad_id = self._backend.token_to_id(token)
                if pad_id is None:
                    raise UserError(
                        f"{Path(self._source).with_name(name)}: pad_token {token!r} is not in the vocabulary"
                    )
                return token, pad_id
        pad_id = self._backend.token_to_id("<pad>")
        if pad_id is None:
            pad_id = self.end_id
        return self._backend.id_to_token(pad_id), pad_id


def _clip_backend(vocab: Path, merges: Path):
    """CLIP's tokenizer (Radford et al. 2021, byte-level BPE of lower-cased words, each marked at its end)."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    ids = parsing.read_object(vocab, "tokenizer_bytes")
    if not all(type(id) is int for id in ids.values()):
        raise ValueError("an id of vocab.json is no whole number")
    check_ids(ids)
    lines = parsing.read_bytes(merges, "tokenizer_bytes").decode().splitlines()
    merged = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    check("tokenizer_tokens", len(merged), "it has more than {} merges")
    if any(len(tokens) != 2 for tokens in merged):
        raise ValueError("a line of merges.txt is no pair of tokens")
    pairs = [(first, second) for first, second in merged]
    backend = Tokenizer(models.BPE(ids, pairs, end_of_word_suffix="</w>", unk_token=_CLIP_END))

    def with_id(token: str) -> tuple[str, int]:
        id = backend.token_to_id(token)
        if id is None:
            raise ValueError(f"it has no {token}, so it is not CLIP's; other tokenizers need a tokenizer.json")
        return token, id

    end, start = with_id(_CLIP_END), with_id(_CLIP_START)
    # The end token, unlike the start token, is looked for before lower-casing; transformers writes it so.
    backend.add_special_tokens([AddedToken(_CLIP_START, normalized=True), AddedToken(_CLIP_END, normalized=False)])
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.post_processor = processors.RobertaProcessing(end, start, trim_offsets=False, add_prefix_space=False)
    return backend


def _as_unicode(caption: str) -> str:
    if not isinstance(caption, str):
        raise UserError(f"captions: expected text, got {type(caption).__name__}")
    if caption.isascii():
        return caption
    # Python strings may hold halves of surrogate pairs, which Rust strings cannot: join pairs, replace lone halves.
    return caption.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


@contextlib.contextmanager
def _blaming(source: object, what: str) -> Iterator[None]:
    """Turn the library's errors into a `UserError`: bare exceptions, and panics of Rust, which are no `Exception`."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{source}: {what} ({files.reason(error)})") from None
