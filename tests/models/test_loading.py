"""A second network of a kind is listed beside its protocol, and is loaded where a config names it."""

import json
import shutil
from dataclasses import dataclass

import pytest

from dalle_mini.errors import UserError
from dalle_mini.models import VQGAN, DalleBart, image_tokenizer, token_model
from dalle_mini.models.config import DalleBartConfig, VQGANConfig
from dalle_mini.models.fingerprint import fingerprint, stored_fingerprint


@dataclass(frozen=True)
class OtherVQGANConfig(VQGANConfig):
    model_type = "other_tokenizer"


class OtherVQGAN(VQGAN):
    config_class = OtherVQGANConfig
    encoding_parts = ("codebook",)


@dataclass(frozen=True)
class OtherBartConfig(DalleBartConfig):
    model_type = "other_model"


class OtherBart(DalleBart):
    config_class = OtherBartConfig


@pytest.fixture
def folders(golden_bundle, tmp_path, monkeypatch):
    """A bundle's folders of both kinds, whose configs name other networks."""
    monkeypatch.setattr(image_tokenizer, "NETWORKS", (VQGAN, OtherVQGAN))
    monkeypatch.setattr("dalle_mini.models.fingerprint.NETWORKS", (VQGAN, OtherVQGAN))
    monkeypatch.setattr(token_model, "NETWORKS", (DalleBart, OtherBart))
    bundle = shutil.copytree(golden_bundle, tmp_path / "bundle")
    for part, kind in (("vqgan", "other_tokenizer"), ("dalle", "other_model")):
        rename(bundle / part, kind)
    return bundle / "vqgan", bundle / "dalle"


def rename(folder, kind):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": kind}))


def test_a_config_names_the_network(folders):
    vqgan, dalle = folders
    assert isinstance(image_tokenizer.load_image_tokenizer(vqgan), OtherVQGAN)
    assert isinstance(image_tokenizer.token_grid(vqgan), OtherVQGANConfig)
    assert isinstance(token_model.load_token_model(dalle), OtherBart)
    config = token_model.token_model_config(dalle)
    assert isinstance(config, OtherBartConfig)
    graphdef, _ = token_model.token_model_shapes(config, "float32")
    assert graphdef == OtherBart.shapes(config)[0] != DalleBart.shapes(config)[0]


def test_each_tokenizer_says_what_its_fingerprint_is_of(folders):
    vqgan, _ = folders
    assert stored_fingerprint(vqgan) == fingerprint(image_tokenizer.load_image_tokenizer(vqgan))
    other = fingerprint(image_tokenizer.load_image_tokenizer(vqgan))
    rename(vqgan, "vqgan")
    assert other != stored_fingerprint(vqgan) == fingerprint(image_tokenizer.load_image_tokenizer(vqgan))


def test_a_network_that_nobody_knows_is_named(folders):
    vqgan, dalle = folders
    for folder, load in ((vqgan, image_tokenizer.load_image_tokenizer), (dalle, token_model.load_token_model)):
        rename(folder, "something")
        with pytest.raises(UserError, match="model_type='something'"):
            load(folder)
