"""A model that tells whose tokens it draws is not put together with another VQGAN."""

import json
import shutil

import jax.numpy as jnp
import pytest
from flax import nnx

from dalle_mini import DalleMini
from dalle_mini.cli import main
from dalle_mini.conversion.convert import convert
from dalle_mini.errors import UserError
from dalle_mini.models import VQGAN
from dalle_mini.models.fingerprint import fingerprint, stored_fingerprint
from dalle_mini.training.run.init_from import start_tokens

REFUSED = r"dalle draws the tokens of another VQGAN \([0-9a-f]{16}\) than .* \([0-9a-f]{16}\): name the one that it was"


@pytest.fixture
def told(golden_bundle, tmp_path):
    """A bundle whose model tells that its tokens are of the bundle's VQGAN."""
    bundle = shutil.copytree(golden_bundle, tmp_path / "told")
    own = fingerprint(VQGAN.from_pretrained(bundle / "vqgan"))
    (bundle / "dalle" / "tokens.json").write_text(json.dumps({"vqgan": own}))
    return bundle


@pytest.fixture
def other(golden_bundle, tmp_path):
    """A VQGAN of the same shape, one number of whose encoder is another."""
    vqgan = VQGAN.from_pretrained(golden_bundle / "vqgan")
    vqgan.encoder.conv_out.bias.set_value(vqgan.encoder.conv_out.bias.get_value().at[0].add(1e-3))
    vqgan.save_pretrained(tmp_path / "other")
    return tmp_path / "other"


@pytest.mark.parametrize("quantizer", ["nearest", "cosine", "gumbel"])
def test_what_is_stored_has_the_same_identity(quantizer, golden_bundle, tmp_path):
    config = VQGAN.from_pretrained(golden_bundle / "vqgan").config
    vqgan = VQGAN(type(config).from_dict(config.to_dict() | {"quantizer": quantizer}), rngs=nnx.Rngs(0))
    vqgan.save_pretrained(tmp_path)
    assert stored_fingerprint(tmp_path) == fingerprint(vqgan)


def test_another_vqgan_is_refused_by_convert(told, other, tmp_path):
    with pytest.raises(UserError, match=REFUSED):
        convert(told, tmp_path / "made", vqgan=other, clip=told)
    with pytest.raises(UserError, match=REFUSED):
        convert(told / "dalle", tmp_path / "made", vqgan=other, clip=told)
    assert not (tmp_path / "made").exists() and not list(tmp_path.glob(".made*"))
    convert(told / "dalle", tmp_path / "made", vqgan=told, clip=told)
    assert (tmp_path / "made" / "dalle" / "tokens.json").is_file()


def test_another_vqgan_is_refused_before_anything_is_drawn(told, other, tmp_path, capsys):
    arguments = ["generate", "a cat", "--model", str(told), "--output", str(tmp_path / "drawn"), "--candidates", "1"]
    assert main([*arguments, "--vqgan", str(other)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and len(error.splitlines()) == 1 and str(other) in error and "--vqgan" in error
    shutil.rmtree(told / "vqgan")
    shutil.copytree(other, told / "vqgan")
    with pytest.raises(UserError, match=REFUSED):
        DalleMini.from_pretrained(told)
    (told / "dalle" / "tokens.json").unlink()
    DalleMini.from_pretrained(told)  # nothing tells


def test_a_copy_in_another_type_is_the_same_vqgan(told, other, tmp_path):
    own = fingerprint(VQGAN.from_pretrained(told / "vqgan"))
    convert(told, tmp_path / "half", dtype="float16")
    pipe = DalleMini.from_pretrained(tmp_path / "half")
    assert stored_fingerprint(tmp_path / "half" / "vqgan") != own
    assert set(start_tokens(str(tmp_path / "half"))) == {own, stored_fingerprint(tmp_path / "half" / "vqgan")}
    pipe.save_pretrained(tmp_path / "saved", dtype=jnp.bfloat16)
    DalleMini.from_pretrained(tmp_path / "saved")

    convert(told / "vqgan", tmp_path / "vqgan", dtype="bfloat16")
    convert(tmp_path / "vqgan", tmp_path / "again", dtype="float32")
    for copy in ("vqgan", "again"):
        DalleMini.from_pretrained(told, vqgan=tmp_path / copy)

    shutil.copyfile(other / "model.safetensors", tmp_path / "half" / "vqgan" / "model.safetensors")
    with pytest.raises(UserError, match=REFUSED):  # the record there was of other weights
        DalleMini.from_pretrained(tmp_path / "half")


@pytest.mark.parametrize("record", ["[]", "{", '{"vqgan": 3}', "{}"])
def test_a_damaged_record_is_named(record, told, tmp_path):
    (told / "dalle" / "tokens.json").write_text(record)
    with pytest.raises(UserError, match=r"dalle/tokens.json"):
        DalleMini.from_pretrained(told)
    with pytest.raises(UserError, match=r"dalle/tokens.json"):
        convert(told, tmp_path / "made")
