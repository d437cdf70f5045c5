"""A run of DALL·E mini: its settings from a YAML file, its tokens found or encoded, its trainer and its sampler."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dalle_mini.data.tokens.batches import TokenBatches
from dalle_mini.data.tokens.dataset import TokenDataset
from dalle_mini.data.tokens.fetch_bucket import fetch_tokens
from dalle_mini.data.tokens.shards import MANIFEST, Manifest
from dalle_mini.errors import UserError
from dalle_mini.models import DalleBart
from dalle_mini.models.config import DalleBartConfig
from dalle_mini.runtime.paths import source_setting
from dalle_mini.settings import LARGEST
from dalle_mini.text import CaptionNormalizer, CaptionTokenizer
from dalle_mini.training.config import config_file
from dalle_mini.training.config.sections import LoopConfig, MeshConfig, SampleConfig, TrackingConfig, check_most
from dalle_mini.training.engine.flops import Work
from dalle_mini.training.engine.multihost import each_process_does, first_process_does
from dalle_mini.training.engine.sharding import data_share, make_mesh
from dalle_mini.training.run.checkpoint_folder import holds_checkpoints
from dalle_mini.training.run.init_from import TOKENIZER, start_model, start_tokenizer, start_tokens, start_vqgan
from dalle_mini.training.seq2seq.samples import PromptSampler
from dalle_mini.training.seq2seq.trainer import Seq2SeqTrainer, Seq2SeqTraining
from dalle_mini.weights.bundle import find_part, word_list
from dalle_mini.weights.pretrained import flatten, mismatch

HELD_OUT = 0.1  # the share of a dataset's images that encoding puts aside for the evaluation

logger = logging.getLogger("dalle_mini")


@dataclass(frozen=True)
class TokenData:
    """The data of a run: folders or Hub repositories of encoded images.

    Attributes:
        train, weights: the datasets, and in which proportions they are mixed; None mixes them by their sizes. A dataset
            in a bucket (gs://...) is copied once to this machine's cache. A dataset of captioned images that is not
            encoded yet is encoded first, into the run's folder.
        validation: the datasets of the evaluation; None takes the rows of `train` that encoding has put aside.
        tokenizer: a folder or repository, with the word list of the normalizer beside it; None takes that of
            `init_from`.
        vqgan: the VQGAN of the tokens. It is needed for shards that do not name theirs, as the original's notebook
            made them, and for what this run encodes and draws. None takes that of the bundle in `init_from`, or
            `samples.vqgan`.
    """

    train: tuple[str, ...] = source_setting(())
    weights: tuple[float, ...] | None = None
    validation: tuple[str, ...] | None = source_setting()
    tokenizer: str | None = source_setting()
    vqgan: str | None = source_setting()

    def __post_init__(self):
        check_most("data", self, weights=LARGEST)


@dataclass(frozen=True)
class Seq2SeqRun:
    """All settings of a run, as its YAML file has them."""

    data: TokenData = field(default_factory=TokenData)
    training: Seq2SeqTraining = field(default_factory=Seq2SeqTraining)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    samples: SampleConfig = field(default_factory=SampleConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def build_run(values: Mapping[str, Any], assignments: Sequence[str] = ()) -> Seq2SeqRun:
    """A run's settings from a file's values and `key=value` overrides.

    Values without `training.model` that name weights to start from take those weights' config.

    Raises:
        UserError: a key or value cannot be, or the weights to start from cannot be found.
    """
    run = config_file.build(Seq2SeqRun, values, assignments)
    start = run.training.init_from
    if start is None or "model" in (values.get("training") or {}):
        return run
    base = dataclasses.replace(run, training=dataclasses.replace(run.training, model=start_model(start)))
    return config_file.build(Seq2SeqRun, values, assignments, base)


def prepare(run: Seq2SeqRun, out: Path) -> Seq2SeqTrainer:
    """Open a run's data, encoding into `out/tokens` what is not encoded yet, and make its trainer.

    Raises:
        UserError: data, tokenizer or models are missing, damaged, or do not go together.
    """
    data, training = run.data, run.training
    if not data.train:
        raise UserError("data.train: name the encoded images to learn from (dalle-mini encode makes them)")
    index, count = data_share(make_mesh(run.mesh))  # what is wrong shows before the wait for the encoding
    # A run that goes on has weights of its own: those that it began with may be gone.
    goes_on = holds_checkpoints(run.loop.checkpoints_in(out))
    if not goes_on:
        _check_start(training)
    kept = out / TOKENIZER
    tokenizer, normalizer, words = _text(str(kept) if goes_on and kept.is_dir() else _tokenizer(run), training.model)
    common: dict[str, Any] = {
        "batch_size": run.loop.batch_size,
        "seed": run.loop.seed,
        "text_length": training.model.text_length,
        "process_index": index,
        "process_count": count,
    }
    train, held_out = _datasets(run, out)
    batches = TokenBatches(
        train, tokenizer, normalizer, caption_dropout=training.caption_dropout, weights=data.weights, **common
    )
    if not goes_on:
        _check_tokens(training, batches.vqgan)
    return Seq2SeqTrainer(training, batches, TokenBatches(held_out, tokenizer, normalizer, **common), tokenizer, words)


def sampler(run: Seq2SeqRun, trainer: Seq2SeqTrainer) -> PromptSampler:
    """Draws the run's prompts. Raises UserError as `PromptSampler` does."""
    train = trainer.train
    vqgan = _vqgan(run) if run.samples.prompts else None
    return PromptSampler(
        run.samples, run.training.model, trainer.tokenizer, train.normalizer, vqgan=vqgan, trained_on=train.vqgan
    )


def work(run: Seq2SeqRun) -> Work:
    """The arithmetic of an image, for tokens a second and MFU."""
    return Work.of(run.training.model, run.training.positions)


@dataclass(frozen=True)
class NoData:
    """Takes the place of datasets and tokenizer where only shapes matter."""

    image_length: int
    codebook_size: int
    vqgan: str = "none"

    def check_vocab_size(self, size: int) -> None:
        """Accepts any model."""


def without_data(run: Seq2SeqRun) -> Seq2SeqTrainer:
    """A trainer whose update can be compiled, though it has no data."""
    model = run.training.model
    data: Any = NoData(model.image_length, model.image_vocab_size)
    return Seq2SeqTrainer(run.training, data, data, data)


def _check_start(training: Seq2SeqTraining) -> None:
    """Raises UserError where the weights to start from are of another model than the one to train."""
    if training.init_from is None:
        return
    start = start_model(training.init_from)
    found, wanted = (flatten(DalleBart.shapes(config)[1]) for config in (start, training.model))
    if problem := mismatch(wanted, found):
        raise UserError(f"training.init_from={training.init_from} is of another model than training.model: {problem}")


def _check_tokens(training: Seq2SeqTraining, vqgan: str) -> None:
    """Raises UserError where the weights to start from know another VQGAN's tokens: to them the data's are noise."""
    if training.init_from is None or training.new_tokens or training.optimizer.embeddings_only:
        return
    known = start_tokens(training.init_from)
    if known is not None and vqgan not in known:
        raise UserError(
            f"training.init_from={training.init_from} knows the tokens of another VQGAN ({known[0]}) than the data's "
            f"({vqgan}): encode the images with that one, or learn these from nothing with training.new_tokens=true"
        )


def _datasets(run: Seq2SeqRun, out: Path) -> tuple[list[TokenDataset], list[TokenDataset]]:
    """(the datasets to train on, those to evaluate on)."""
    data = run.data
    sources = [
        _encoded(run, _here(source), out / "tokens" / f"{number:02d}") for number, source in enumerate(data.train)
    ]
    validation = None if data.validation is None else [_here(source) for source in data.validation]
    train = [TokenDataset(source, vqgan=data.vqgan) for source in sources]
    held_out = [
        TokenDataset(source, _held_out_split(source, is_named=validation is not None), vqgan=data.vqgan)
        for source in validation or sources
    ]
    return train, held_out


def _here(source: str) -> str:
    """`source`, or the copy on this machine of tokens in a bucket. Images in a bucket stay where they are."""
    if "://" not in source or source.startswith("hf://"):  # a dataset of images on the Hub; tokens there are owner/name
        return source
    copies: list[Path | None] = []
    each_process_does(lambda: copies.append(fetch_tokens(source)))  # every machine has a disk of its own
    return source if copies[0] is None else str(copies[0])


def _encoded(run: Seq2SeqRun, source: str, folder: Path) -> str:
    """`source` where it holds tokens; else its images are encoded into `folder`, which is returned."""
    path = Path(source)
    if "://" not in source and not path.exists() and (folder / MANIFEST).exists():
        return str(folder)  # the images have gone since
    if "://" not in source and (
        not path.exists() or (path / MANIFEST).exists() or path.suffix == ".parquet" or any(path.glob("**/*.parquet"))
    ):
        return source
    from dalle_mini.data.encode import EncodeOptions, Weights, encode
    from dalle_mini.data.sources import open_source

    images, vqgan = open_source(source), _vqgan(run)
    if vqgan is None:
        raise UserError(f"data.vqgan: name the VQGAN that shall encode {source}, or run dalle-mini encode first")

    def encode_here() -> None:
        outcome = encode(images, Weights(vqgan), str(folder), EncodeOptions(validation=HELD_OUT))
        kept = outcome.manifest
        if outcome.was_finished or kept is None:
            return
        dropped = "".join(f"; {count} dropped: {reason}" for reason, count in kept.dropped.items())
        logger.warning("%s: %d of %d images are encoded%s", source, kept.kept, kept.seen, dropped)

    first_process_does(encode_here)
    return str(folder)


def _text(source: str | None, model: DalleBartConfig) -> tuple[CaptionTokenizer, CaptionNormalizer | None, Path | None]:
    """The tokenizer, the normalizer if the model wants one, and its word list if there is one."""
    if source is None:
        raise UserError("data.tokenizer: name a folder or repository with a tokenizer, such as dalle-mini/dalle-mini")
    folder = find_part("dalle", source, weights=False)
    words = word_list(folder) if model.normalize_text else None
    normalizer = CaptionNormalizer(words) if model.normalize_text else None
    return CaptionTokenizer.from_pretrained(folder), normalizer, words


def _held_out_split(source: str, *, is_named: bool) -> str:
    """The split to evaluate on: the rows that encoding put aside, or all rows where there are none.

    `is_named` says that `data.validation` names this dataset, so that all of its rows are held out anyway.
    """
    manifest = Path(source) / MANIFEST
    if not manifest.is_file() or Manifest.read(Path(source)).splits["validation"].rows:
        return "validation"
    if not is_named:
        logger.warning("%s: no rows are put aside for validation: eval_loss is of those that are learned", source)
    return "train"


def _tokenizer(run: Seq2SeqRun) -> str | None:
    start = run.training.init_from
    return start_tokenizer(start) if run.data.tokenizer is None and start is not None else run.data.tokenizer


def _vqgan(run: Seq2SeqRun) -> str | None:
    named, start = run.samples.vqgan or run.data.vqgan, run.training.init_from
    return start_vqgan(start) if named is None and start is not None else named
