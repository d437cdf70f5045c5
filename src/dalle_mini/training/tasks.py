"""A run as a whole, of the network that its YAML file names: its settings, its data found or made, and its trainer.

What is here is seq2seq's; a VQGAN's is in `vqgan_run.py`, CLIP's in `clip_run.py`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dalle_mini.addresses import hides
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
from dalle_mini.training.clip import run as clip_run
from dalle_mini.training.clip.run import CLIPRun
from dalle_mini.training.config import config_file
from dalle_mini.training.config.sections import (
    LoopConfig,
    MeshConfig,
    SampleConfig,
    TrackingConfig,
    check_choice,
    check_most,
)
from dalle_mini.training.engine.flops import Work
from dalle_mini.training.engine.multihost import each_process_does, first_process_does
from dalle_mini.training.engine.sharding import data_share, make_mesh
from dalle_mini.training.run import loop
from dalle_mini.training.run.checkpoint import holds_checkpoints
from dalle_mini.training.run.folder import alone_in_run, started_with
from dalle_mini.training.run.image_runs import SOURCES
from dalle_mini.training.run.init_from import TOKENIZER, start_model, start_tokenizer, start_tokens, start_vqgan
from dalle_mini.training.run.ownership import Claim
from dalle_mini.training.seq2seq.samples import Sampler
from dalle_mini.training.seq2seq.trainer import Seq2SeqTrainer, Seq2SeqTraining
from dalle_mini.training.vqgan import run as vqgan_run
from dalle_mini.training.vqgan.run import VQGANRun
from dalle_mini.weights.bundle import find_part, word_list
from dalle_mini.weights.pretrained import flatten, mismatch

NETWORK, VQGAN, CLIP = "seq2seq", "vqgan", "clip"  # what the verb trains
CHECKPOINTS = "loop.checkpoints"
HELD_OUT = 0.1  # of a pile's pictures, for the evaluation

logger = logging.getLogger("dalle_mini")


@dataclass(frozen=True)
class TokenData:
    """What a run learns from: folders or Hub repositories of encoded pictures.

    Attributes:
        train, weights: the sets, and in which proportions they are mixed; by their sizes if None. What is in a bucket
            (gs://...) is copied once to this machine's cache. A pile of captioned pictures that is not encoded yet is
            encoded first, into the run's folder.
        validation: sets for evaluation; None is those of `train`, of which encoding has put some rows aside.
        tokenizer: a folder or repository, with the word list of the normalizer beside it; None is that of `init_from`.
        vqgan: the VQGAN of the tokens: of shards that do not tell it, which the original's notebook made, and for what
            is encoded and drawn here. None is that of the bundle in `init_from`, or `samples.vqgan`.
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


KINDS = {NETWORK: Seq2SeqRun, VQGAN: VQGANRun, CLIP: CLIPRun}
Run = Seq2SeqRun | VQGANRun | CLIPRun


@dataclass(frozen=True)
class Prepared:
    """A run that can start: what to train, and who draws pictures on the way."""

    trainer: Seq2SeqTrainer
    sampler: Sampler


def load_run(path: str | Path, assignments: Sequence[str] = ()) -> Run:
    """A run's settings from a YAML file, whose `network` says of what, and `key=value` overrides.

    A file without `training.model` that names weights to start from takes those weights' config.

    Raises UserError where the file cannot be read, is of another network, or holds a key or value that cannot be.
    """
    values = config_file.read(path)
    network = values.pop("network", NETWORK)
    try:
        check_choice("network", network, tuple(KINDS))
        config_file.build(KINDS[network], values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if network != NETWORK:
        return {VQGAN: vqgan_run, CLIP: clip_run}[network].build_run(values, assignments)
    run = config_file.build(Seq2SeqRun, values, assignments)
    start = run.training.init_from
    if start is not None and "model" not in (values.get("training") or {}):
        model = start_model(start)
        base = dataclasses.replace(run, training=dataclasses.replace(run.training, model=model))
        run = config_file.build(Seq2SeqRun, values, assignments, base)
    return run


def recorded_run(out: Path, assignments: Sequence[str] = ()) -> Run:
    """The settings that the run in `out` was started with, or last changed to, with overrides.

    Raises UserError where there is no run, or its record cannot be read.
    """
    elsewhere = [value for name, _, value in (one.partition("=") for one in assignments) if name == CHECKPOINTS]
    found = started_with(out, elsewhere[-1] if elsewhere else None)
    if found is None:
        raise UserError(
            f"{out} holds no run to continue: name a CONFIG to start one, or say where its checkpoints are "
            f"({CHECKPOINTS}=...)"
        )
    kind = KINDS.get(found.get("trainer"), Seq2SeqRun)
    names = {field.name for field in dataclasses.fields(kind)}
    values = {name: found[name] for name in names & found.keys()} | {"data": found.get(SOURCES, {})}
    try:
        config_file.build(kind, values)
    except UserError as error:
        raise UserError(f"{out}: its record is of another kind of run ({error}); name a CONFIG") from None
    run = config_file.build(kind, values, assignments)
    if hides(dataclasses.asdict(run.data)):
        raise UserError(f"{out}: its record does not keep what lets one in to its data: name their addresses again")
    return run


def train(run: Run, out: Path, *, resume: str = "auto", allow_changes: bool = False) -> Path:
    """Train into the folder `out`, or continue what is there; the weights are then in the folder that is returned.

    Raises UserError where something in the settings or the data is wrong; otherwise as `loop.run`.
    """
    with alone_in_run(out, _checkpoints(run, out), resume):
        Claim(out, _checkpoints(run, out))  # or UserError, before data are made
        if not isinstance(run, Seq2SeqRun):
            module = clip_run if isinstance(run, CLIPRun) else vqgan_run
            return module.train(run, out, resume=resume, allow_changes=allow_changes)
        return _train(run, out, resume, allow_changes)


def _checkpoints(run: Run, out: Path) -> str | Path:
    return run.loop.checkpoints or out / "checkpoints"


def _train(run: Seq2SeqRun, out: Path, resume: str, allow_changes: bool) -> Path:
    prepared = prepare_run(run, out)
    settings = {name: dataclasses.asdict(getattr(run, name)) for name in ("samples", "tracking")}
    loop.run(
        prepared.trainer,
        run.loop,
        out,
        run.mesh,
        resume=resume,
        allow_changes=allow_changes,
        tracking=run.tracking,
        work=Work.of(run.training.model, run.training.positions),
        sampler=prepared.sampler,
        settings={**settings, SOURCES: dataclasses.asdict(run.data)},
    )
    return out / "final"


def prepare_run(run: Seq2SeqRun, out: Path) -> Prepared:
    """Open a run's data, encoding what is not encoded yet into `out/tokens`, and make its trainer.

    Raises UserError where data, tokenizer or models are missing, damaged, or do not go together.
    """
    data, training = run.data, run.training
    if not data.train:
        raise UserError("data.train: name the encoded pictures to learn from (dalle-mini encode makes them)")
    index, count = data_share(make_mesh(run.mesh))  # what is wrong shows before the wait for the encoding
    goes_on = holds_checkpoints(_checkpoints(run, out))  # with its own weights: those that it began with may be gone
    kept = out / TOKENIZER
    if not goes_on:
        _check_start(training)
    source = str(kept) if goes_on and kept.is_dir() else _tokenizer_source(run)
    tokenizer, normalizer, words = _text(source, training.model)
    sources = [
        _encoded(run, _here(source), out / "tokens" / f"{number:02d}") for number, source in enumerate(data.train)
    ]
    validation = None if data.validation is None else [_here(source) for source in data.validation]
    vqgan = data.vqgan
    train = [TokenDataset(source, vqgan=vqgan) for source in sources]
    held_out = [
        TokenDataset(source, _split_to_hold_out(source, validation is not None), vqgan=vqgan)
        for source in validation or sources
    ]
    common = {
        "batch_size": run.loop.batch_size,
        "seed": run.loop.seed,
        "text_length": training.model.text_length,
        "process_index": index,
        "process_count": count,
    }
    batches = TokenBatches(
        train, tokenizer, normalizer, caption_dropout=training.caption_dropout, weights=data.weights, **common
    )
    if not goes_on:
        _check_tokens(training, batches.vqgan)
    trainer = Seq2SeqTrainer(
        training, batches, TokenBatches(held_out, tokenizer, normalizer, **common), tokenizer, words
    )
    drawn_by = _vqgan_source(run) if run.samples.prompts else None
    sampler = Sampler(run.samples, training.model, tokenizer, normalizer, vqgan=drawn_by, trained_on=batches.vqgan)
    return Prepared(trainer, sampler)


def _check_start(training: Seq2SeqTraining) -> None:
    """Raises UserError where the weights to start from are of another model than the one to train."""
    if training.init_from is None:
        return
    start = start_model(training.init_from)
    found, wanted = (flatten(DalleBart.shapes(config)[1]) for config in (start, training.model))
    if problem := mismatch(wanted, found):
        raise UserError(f"training.init_from={training.init_from} is of another model than training.model: {problem}")


def _check_tokens(training: Seq2SeqTraining, vqgan: str) -> None:
    """Raises UserError where the weights to start from draw with another VQGAN's tokens: to them these are noise."""
    if training.init_from is None or training.new_tokens or training.optimizer.embeddings_only:
        return
    known = start_tokens(training.init_from)
    if known is not None and vqgan not in known:
        raise UserError(
            f"training.init_from={training.init_from} knows the tokens of another VQGAN ({known[0]}) than the data's "
            f"({vqgan}): encode the pictures with that one, or let it learn these anew with training.new_tokens=true"
        )


def _here(source: str) -> str:
    """`source`, or where the copy of what is in a bucket is; a pile of pictures there stays where it is."""
    if "://" not in source or source.startswith("hf://"):  # a pile of the Hub; tokens there are owner/name
        return source
    copies: list[Path | None] = []
    each_process_does(lambda: copies.append(fetch_tokens(source)))  # every machine has a disk of its own
    return source if copies[0] is None else str(copies[0])


def _encoded(run: Seq2SeqRun, source: str, folder: Path) -> str:
    """`source`, or where its pictures are once they are encoded: what holds neither shards nor a manifest is a pile."""
    pile = Path(source)
    if "://" not in source and not pile.exists() and (folder / MANIFEST).exists():
        return str(folder)  # the pile has gone since
    if "://" not in source and (
        not pile.exists() or (pile / MANIFEST).exists() or pile.suffix == ".parquet" or any(pile.glob("**/*.parquet"))
    ):
        return source
    from dalle_mini.data.encode import EncodeOptions, Weights, encode
    from dalle_mini.data.sources import open_source

    pictures, vqgan = open_source(source), _vqgan_source(run)
    if vqgan is None:
        raise UserError(f"data.vqgan: name the VQGAN that shall encode {source}, or run dalle-mini encode first")

    def encode_here() -> None:
        outcome = encode(pictures, Weights(vqgan), str(folder), EncodeOptions(validation=HELD_OUT))
        if outcome.was_finished:
            return
        kept = outcome.manifest
        dropped = "".join(f"; {count} dropped: {reason}" for reason, count in kept.dropped.items())
        logger.warning("%s: %d of %d pictures are encoded%s", source, kept.kept, kept.seen, dropped)

    first_process_does(encode_here)
    return str(folder)


def _text(source: str | None, model: DalleBartConfig) -> tuple[CaptionTokenizer, CaptionNormalizer | None, Path | None]:
    """Tokenizer, normalizer if the model wants one, and its list of words if there is one."""
    if source is None:
        raise UserError("data.tokenizer: name a folder or repository with a tokenizer, such as dalle-mini/dalle-mini")
    folder = find_part("dalle", source, weights=False)
    words = word_list(folder) if model.normalize_text else None
    normalizer = CaptionNormalizer(words) if model.normalize_text else None
    return CaptionTokenizer.from_pretrained(folder), normalizer, words


def _split_to_hold_out(source: str, for_that: bool) -> str:
    """Of a data set the rows that encoding put aside, or else all of them; `for_that` is one named for validation."""
    manifest = Path(source) / MANIFEST
    if not manifest.is_file() or Manifest.read(Path(source)).splits["validation"].rows:
        return "validation"
    if not for_that:
        logger.warning("%s: no rows are put aside for validation: eval_loss is of those that are learned", source)
    return "train"


def _tokenizer_source(run: Seq2SeqRun) -> str | None:
    start = run.training.init_from
    return start_tokenizer(start) if run.data.tokenizer is None and start is not None else run.data.tokenizer


def _vqgan_source(run: Seq2SeqRun) -> str | None:
    named, start = run.samples.vqgan or run.data.vqgan, run.training.init_from
    return start_vqgan(start) if named is None and start is not None else named
