"""Settings from YAML files and key=value overrides, into dataclasses."""

from dataclasses import dataclass, field, is_dataclass
from typing import get_args, get_type_hints

import pytest

from dalle_mini.errors import UserError
from dalle_mini.training.clip.run import CLIPRun
from dalle_mini.training.config.config_file import build, override, read
from dalle_mini.training.seq2seq.run import Seq2SeqRun
from dalle_mini.training.vqgan.run import VQGANRun


@dataclass(frozen=True)
class Inner:
    width: int = 4
    rate: float = 0.5
    sizes: tuple[int, ...] = (1, 2)
    crop: int | None = None

    def __post_init__(self):
        if self.width < 0:
            raise UserError("width is negative")


@dataclass(frozen=True)
class Outer:
    folder: str = "runs"
    remat: bool = False
    steps: int = 10
    inner: Inner = field(default_factory=Inner)


def test_values_of_every_type():
    changed = override(
        Outer(),
        [
            "folder=a=b c",
            "remat=true",
            "steps=3",
            "inner.width=8",
            "inner.rate=1e-3",
            "inner.sizes=[3]",
            "inner.crop=16",
        ],
    )
    assert changed == Outer("a=b c", True, 3, Inner(8, 1e-3, (3,), 16))
    assert Outer() == Outer("runs", False, 10, Inner(4, 0.5, (1, 2), None))


def test_nothing_and_the_last_of_two():
    assert override(Outer(), []) == Outer()
    assert override(Outer(), ["steps=1", "steps=2"]).steps == 2


def test_a_whole_number_is_a_number():
    rate = override(Outer(), ["inner.rate=2"]).inner.rate
    assert isinstance(rate, float)
    assert rate == 2


def test_null_unsets_what_may_be_unset():
    assert override(Outer(inner=Inner(crop=8)), ["inner.crop=null"]).inner.crop is None


def test_folders_may_look_like_json():
    for text in ("2024", "true", "null", "[1]", "1e3", ""):
        assert override(Outer(), [f"folder={text}"]).folder == text


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("steps", "'steps': overrides are written key=value"),
        ("step=1", "step: no such setting; did you mean steps?"),
        ("inner.widht=1", "inner.widht: no such setting; did you mean width?"),
        ("zzz=1", "zzz: no such setting; known are folder, remat, steps, inner"),
        ("=1", ": no such setting; known are folder, remat, steps, inner"),
        ("steps.more=1", "steps.more: steps has no settings of its own"),
        ("steps=many", "steps: 'many' is not of type int"),
        ("steps=1.5", "steps: 1.5 is not of type int"),
        ("steps=true", "steps: True is not of type int"),
        ("steps=null", "steps: None is not of type int"),
        ("remat=1", "remat: 1 is not of type bool"),
        ("remat=yes", "remat: 'yes' is not of type bool"),
        ("inner=3", "inner: 3 is not of type Inner"),
        ("inner.rate=true", "inner.rate: True is not of type float"),
        ("inner.sizes=3", "inner.sizes: 3 is not of type list of int"),
        ("inner.sizes=[1, 2.5]", "inner.sizes: [1, 2.5] is not of type list of int"),
        ("inner.crop=large", "inner.crop: 'large' is not of type int or null"),
        ("inner.width=-1", "width is negative"),
    ],
)
def test_mistakes(assignment, message):
    with pytest.raises(UserError) as caught:
        override(Outer(), [assignment])
    assert str(caught.value) == message


def test_the_start_token_follows_the_vocabulary():
    """Once resolved, a config's special ids no longer follow image_vocab_size: null resolves them again."""
    from dalle_mini.models.config import DalleBartConfig

    changed = override(DalleBartConfig(), ["image_vocab_size=64", "decoder_start_token_id=null"])
    assert changed.decoder_start_token_id == 64


def test_a_file_and_overrides(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("folder: 2024-11\nsteps: 3\ninner:\n  rate: 1e-3  # which YAML takes for a string\n  sizes: [7]\n")
    assert build(Outer, read(path)) == Outer("2024-11", False, 3, Inner(4, 1e-3, (7,), None))
    changed = build(Outer, read(path), ["inner.width=8", "steps=4"])
    assert changed == Outer("2024-11", False, 4, Inner(8, 1e-3, (7,), None))
    on_a_base = build(Outer, {"inner": {"width": 1}}, base=changed)
    assert on_a_base == Outer("2024-11", False, 4, Inner(1, 1e-3, (7,), None))


@dataclass(frozen=True)
class Lists:
    names: tuple[str, ...] = ()
    weights: tuple[float, ...] | None = None
    folder: str | None = None


def test_lists_of_texts_and_numbers():
    assert override(Lists(), ["names=runs/a"]) == Lists(("runs/a",))
    assert override(Lists(), ["names=[runs/a, gs://b/c]"]) == Lists(("runs/a", "gs://b/c"))
    assert override(Lists(), ["names=[a"]) == Lists(("[a",))  # which no folder is called, and is then said
    assert override(Lists(), ['names=["a", "b"]', "weights=[1, 0.5]"]) == Lists(("a", "b"), (1.0, 0.5))
    assert override(Lists(folder="x"), ["folder=null"]) == Lists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: [", "not plain YAML"),
        ("a: &a [" + "x," * 1000 + "]\nb: [" + "*a," * 1000 + "]", "more than 100000 values"),
        ("- 1\n- 2\n", "it must hold names and values"),
        ("1: 2\n", "it must hold names and values"),
    ],
)
def test_files_that_are_no_settings(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=f"{path}: .*{message}"):
        read(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.optimizer.b1=2", "training.optimizer.b1: 2.0 is not a decay"),
        ("training.optimizer.name=sgd", "training.optimizer.name: 'sgd' is none of"),
        ("training.dtype=half", "training.dtype: 'half' is none of"),
        ("training.model.d_model=33", "training.model: d_model 33 is not a multiple of"),
        ("loop.keep=0", "loop.keep: 0 is too small"),
        ("learning_rate=1", "learning_rate: no such setting; did you mean training.optimizer.learning_rate?"),
        ("optimizer.learning_rate=1", "optimizer: no such setting; did you mean training.optimizer?"),
        ("batch_sizes=8", "batch_sizes: no such setting; did you mean loop.batch_size?"),
        ("training.lerning_rate=8", "training.lerning_rate: no such setting; did you mean optimizer.learning_rate?"),
        ("loop.stepz=8", "loop.stepz: no such setting; did you mean steps?"),
        ("lop.steps=8", "lop: no such setting; did you mean loop?"),
        ("nonsense=8", "nonsense: no such setting; known are data, training,"),
    ],
)
def test_every_complaint_names_the_key_as_it_is_given(change, message):
    for wrong in (lambda: override(Seq2SeqRun(), [change]), lambda: build(Seq2SeqRun, {}, [change])):
        with pytest.raises(UserError) as caught:
            wrong()
        assert str(caught.value).startswith(message)


@pytest.mark.slow
def test_overrides_that_take_for_ever():
    many = "[" + "a," * 200_000 + "]"
    assert override(Lists(), [f"names={many}"]) == Lists((many,))  # no list of so many values: one name
    for assignment, message in (
        ("steps=" + "[" * 50_000, "steps: .* is not of type int"),
        ("steps=1" + "0" * 400, "steps: .* is not of type int"),
        ("inner.rate=1" + "0" * 400, "inner.rate: .* is not of type float"),
        ("a." * 100_000 + "b=1", "none has more than 16 points"),
        ("x" * 200_000 + "=1", "no such setting"),
    ):
        with pytest.raises(UserError, match=message):
            override(Outer(), [assignment])
    with pytest.raises(UserError, match=r"rate: .* is not of type float"):
        build(Outer, {"inner": {"rate": 10**400}})
    with pytest.raises(UserError, match=r"inner\.1: no such setting"):
        build(Outer, {"inner": {1: 2}})


def numbers(kind, prefix=""):
    """The paths of all settings that are numbers or lists of them."""
    for name, wanted in get_type_hints(kind).items():
        kinds = get_args(wanted) or (wanted,)
        inner = [one for one in kinds if is_dataclass(one)]
        if inner:
            yield from numbers(inner[0], f"{prefix}{name}.")
        elif wanted in (tuple[int, ...], tuple[float, ...]) or tuple[float, ...] in kinds:
            yield f"{prefix}{name}", "[1e300]" if "float" in str(wanted) else f"[{10**18}]"
        elif {int, float} & {*kinds}:
            yield f"{prefix}{name}", "1e300" if float in kinds else str(2**63)


@pytest.mark.parametrize(
    "setting", ["data.jitter=-1", "data.min_side=-5", "data.max_aspect=0.5", "data.max_aspect=NaN"]
)
def test_pictures_are_not_asked_for_what_none_has(setting):
    with pytest.raises(UserError, match=r"^data\..* is not a number from"):
        override(VQGANRun(), [setting])


@pytest.mark.parametrize("setting", ["samples.candidates=0", "samples.seed=-1"])
def test_whole_numbers_below_what_makes_sense(setting):
    with pytest.raises(UserError, match=setting.partition("=")[0]):
        override(Seq2SeqRun(), [setting])


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [(kind, setting, value) for kind in (Seq2SeqRun, VQGANRun, CLIPRun) for setting, value in numbers(kind)],
)
def test_every_number_has_an_upper_bound(kind, setting, value):
    with pytest.raises(UserError) as caught:
        override(kind(), [f"{setting}={value}"])
    assert setting.rpartition(".")[2] in str(caught.value)
