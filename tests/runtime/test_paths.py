"""Paths of a config and of the command line, in every way that people write them."""

import argparse
import dataclasses
import typing

import pytest

from dalle_mini.cli import build_parser, main
from dalle_mini.errors import UserError
from dalle_mini.runtime.paths import expanded, local, source
from dalle_mini.training.config import config_file
from dalle_mini.training.tasks import TASKS

# Texts of configs that name no file and no source.
PLAIN = {
    *("evaluation.classes", "evaluation.templates", "data.emoji_kinds", "samples.prompts", "tracking.wandb"),
    *("loop.on_bad_loss", "training.codebook", "training.captions", "training.loss", "training.train"),
    *("training.discriminator.loss", "training.perceptual.kind", "training.remat", "training.token_loss"),
}
PATHS = {  # what a config names, by what it is a config of
    "seq2seq": {
        *("data.train", "data.validation", "data.tokenizer", "data.vqgan", "training.init_from", "loop.checkpoints"),
        *("samples.vqgan", "samples.clip"),
    },
    "vqgan": {
        *("data.train", "data.validation", "data.cache", "training.init_from", "loop.checkpoints"),
        *("training.perceptual.vgg", "training.perceptual.heads", "training.perceptual.clip"),
    },
    "clip": {
        *("data.train", "data.validation", "data.cache", "data.tokenizer", "training.init_from", "loop.checkpoints"),
        *("evaluation.classes_file", "evaluation.pictures"),
    },
}
OPTIONS = [
    ["train", "CONFIG", "--output=FOLDER"],
    ["plan", "CONFIG", "--topology=v3-8"],
    ["generate", "--prompts=FILE", "--output=FOLDER", "--picture=FILE", "--mask=FILE", "--model=SOURCE"],
    ["generate", "--replay=FILE", "--vqgan=SOURCE", "--clip=SOURCE", "--cache-dir=FOLDER"],
    ["encode", "SOURCE", "OUT", "--vqgan=SOURCE", "--clip=SOURCE", "--image-root=FOLDER", "--cache-dir=FOLDER"],
    ["data", "report", "OUT", "--output=FILE", "--vqgan=SOURCE", "--cache-dir=FOLDER"],
    ["convert", "SOURCE", "TARGET", "--vqgan=SOURCE", "--clip=SOURCE", "--cache-dir=FOLDER"],
    ["info", "SOURCE", "--cache-dir=FOLDER"],
]
PLACES = ("CONFIG", "FOLDER", "FILE", "SOURCE", "OUT", "TARGET", "PATH")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory, with a folder in it; another one is the home folder."""
    work, home = tmp_path / "at work", tmp_path / "home"
    for folder in (work, home):
        (folder / "a b" / "c").mkdir(parents=True)
    (work / "link").symlink_to(home / "a b" / "c")
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(home))
    return tmp_path


WAYS = {  # as it is written: what is meant
    "a b": "at work/a b",
    "./a b": "at work/a b",
    "a b/": "at work/a b",
    "a b//c/.": "at work/a b/c",
    "~/a b": "home/a b",
    "~/not yet": "home/not yet",
    "./not/yet": "at work/not/yet",
    "link": "at work/link",
    "link/..": "home/a b",  # and not the working directory
    "a b/*.tar": "at work/a b/*.tar",
    "a b/{00..12}.tar": "at work/a b/{00..12}.tar",
    "*.tar": "at work/*.tar",
}
ADDRESSES = ["gs://bucket/a b", "s3://b/*.tar", "hf://owner/name", "zip://*.png::hf://datasets/owner/name/x.zip"]


@pytest.mark.parametrize("way", WAYS)
def test_each_way_to_write_a_path(way, here):
    meant = str(here / WAYS[way])
    assert local(way) == source(way) == local(meant) == source(meant) == meant


@pytest.mark.parametrize("name", [*ADDRESSES, "owner/name", "owner/name@main", "entity/project/name:v1", "shipped", ""])
def test_what_is_elsewhere_stays_as_it_is_written(name, here):
    assert source(name) == expanded(name) == name


def test_what_is_here_is_never_looked_for_elsewhere(here):
    (here / "at work" / "owner" / "name").mkdir(parents=True)
    assert source("owner/name") == str(here / "at work" / "owner" / "name")


def test_a_working_directory_that_is_gone(here, monkeypatch):
    (here / "gone").mkdir()
    monkeypatch.chdir(here / "gone")
    (here / "gone").rmdir()
    with pytest.raises(UserError, match="'a': no path that can be looked for"):
        local("a")


def texts_of(kind, prefix=""):
    """(name, is it a list, its field) of each setting that is a text or several."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        kinds = typing.get_args(hints[field.name]) or (hints[field.name],)
        inner = next((one for one in kinds if dataclasses.is_dataclass(one)), None)
        if inner is not None:
            yield from texts_of(inner, f"{prefix}{field.name}.")
        elif str in kinds or tuple[str, ...] in (hints[field.name], *kinds):
            yield f"{prefix}{field.name}", field


@pytest.mark.parametrize("network", TASKS)
def test_every_setting_that_names_something_is_a_path(network):
    found = dict(texts_of(TASKS[network].config))
    paths = {name for name, field in found.items() if "path" in field.metadata}
    others = {
        name for name in found.keys() - paths if ".model." not in name and name.split(".")[-1] not in ("dtype", "name")
    } - {name for name in found if "optimizer" in name}
    assert paths == PATHS[network]
    assert others <= PLAIN


@pytest.mark.parametrize("way", ["a b", "~/a b", "link/..", "./not/yet"])
@pytest.mark.parametrize(("network", "name"), [(network, name) for network in TASKS for name in sorted(PATHS[network])])
def test_the_path_settings_of_a_config(network, name, way, here):
    def value(run):
        for part in name.split("."):
            run = getattr(run, part)
        return run

    meant = str(here / WAYS[way]) if way in WAYS else None
    by_option = value(config_file.build(TASKS[network].config, {}, [f"{name}={way}"]))
    nested = way if by_option == meant else [way]
    for part in reversed(name.split(".")):
        nested = {part: nested}
    by_file = value(config_file.build(TASKS[network].config, nested))
    assert by_option == by_file == (meant if isinstance(by_file, str) else (meant,))


def test_drawn_pictures_are_no_folder(here):
    (here / "at work" / "emoji").mkdir()
    run = config_file.build(TASKS["vqgan"].config, {"data": {"train": ["emoji", "./emoji"]}})
    assert run.data.train == ("emoji", str(here / "at work" / "emoji"))


@pytest.mark.parametrize("command", OPTIONS, ids=" ".join)
def test_the_options_that_name_something(command, here):
    """As a shell leaves them: `--output=~/x` and what stands between quotes."""
    written = ["~/a b".join(word.rsplit(place, 1)) if word.endswith(place) else word
               for word in command for place in [next((p for p in PLACES if word.endswith(p)), "\0")]]  # fmt: skip
    args = vars(build_parser().parse_args(written))
    found = [str(value) for value in args.values() if isinstance(value, str) or hasattr(value, "parts")]
    assert found.count(str(here / "home" / "a b")) == sum(
        word != one for word, one in zip(written, command, strict=True)
    )
    assert not any("~" in value for value in found)


@pytest.mark.parametrize("command", OPTIONS, ids=" ".join)
def test_no_option_that_names_something_is_blank(command):
    """`"$UNSET"` gives one: the working directory would be encoded, or the shipped model taken."""
    for blank in command:
        place = next((place for place in PLACES if blank.endswith(place)), None)
        if place is not None:
            written = [word.removesuffix(place) if word == blank else word for word in command]
            with pytest.raises(UserError, match=r"argument .*: it is blank"):
                build_parser().parse_args(written)


@pytest.mark.parametrize("network", TASKS)
def test_no_path_of_a_config_is_blank(network):
    for name in PATHS[network]:
        with pytest.raises(UserError, match=f"{name}: it is blank: name a file"):
            config_file.build(TASKS[network].config, {}, [f"{name}= "])


def test_no_option_is_forgotten():
    def options(parser):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for inner in action.choices.values():
                    yield from options(inner)
            elif action.metavar in PLACES:
                yield parser.prog, action

    for verb, action in options(build_parser()):
        assert action.type is not None and "~" not in str(action.type("~/x")), f"{verb} {action.dest}"


@pytest.mark.parametrize("command", ["info", "data report", "encode folder", "generate cat --output"])
def test_a_name_longer_than_a_file_may_have(capsys, command):
    assert main([*command.split(), "a" * 256]) == 2
    assert "more than 255 bytes" in capsys.readouterr().err.splitlines()[-1]


def test_a_config_that_names_a_file_with_too_long_a_name():
    with pytest.raises(UserError, match="more than 255 bytes"):
        local("folder/" + "ä" * 128 + "/file")
    assert len(local("a" * 255)) > 255


def test_a_pattern_may_name_many_files():
    pattern = "tars/{" + ",".join(f"{number:05d}" for number in range(60)) + "}.tar"
    assert expanded(pattern) == pattern and local(pattern).endswith(pattern)
