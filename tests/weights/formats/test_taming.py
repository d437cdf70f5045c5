"""VQGANs of taming-transformers: finding the two files, reading the YAML, and the same pictures as in torch."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dalle_mini.errors import UserError
from dalle_mini.models import VQGAN
from dalle_mini.models.config import VQGANConfig
from dalle_mini.weights import key_mapping
from dalle_mini.weights.folder import load_tensors
from dalle_mini.weights.formats.taming import find_checkpoint, find_yaml, vqgan_yaml_config
from dalle_mini.weights.formats.torch import read_torch_file
from dalle_mini.weights.pretrained import flatten, unflatten
from torch_files import call, name, save

GOLDEN = Path(__file__).parents[2] / "golden" / "vqgan" / "tiny_f4_64"
YAML = """
model:
  base_learning_rate: 4.5e-06
  target: taming.models.vqgan.{kind}
  params:
    embed_dim: {embed_dim}
    n_embed: {n_embed}
    monitor: val/rec_loss
    {more}
    ddconfig:
      double_z: false
      z_channels: {z_channels}
      resolution: {resolution}
      in_channels: 3
      out_ch: 3
      ch: {ch}
      ch_mult: {ch_mult}  # num_down = len(ch_mult)-1
      num_res_blocks: {num_res_blocks}
      attn_resolutions: {attn_resolutions}
      dropout: 0.0
    lossconfig:
      target: taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator
      params: {{disc_conditional: false, disc_weight: 0.8}}
data:
  target: main.DataModuleFromConfig
"""
GUMBEL = """kl_weight: 1.0e-08
    temperature_scheduler_config: {target: taming.lr_scheduler.LambdaWarmUpCosineScheduler, params: {lr_start: 0.9}}"""
F8_8192 = VQGANConfig(ch_mult=(1, 1, 2, 4), attn_resolutions=(32,), n_embed=8192)  # GumbelVQ on OpenImages
SMALL = VQGANConfig(
    ch=32, ch_mult=(1, 2, 2), num_res_blocks=2, attn_resolutions=(4,), resolution=16, z_channels=12, embed_dim=12,
    n_embed=40, pixel_range=(-1, 1),
)  # fmt: skip


def write_yaml(path: Path, config: VQGANConfig, kind: str = "VQModel", more: str = "") -> Path:
    fields = {key: list(value) if isinstance(value, tuple) else value for key, value in config.to_dict().items()}
    path.write_text(YAML.format(kind=kind, more=more, **fields))
    return path


def in_torch(tensors) -> dict[str, np.ndarray]:
    """Our VQGAN's arrays by name -> those of taming's state_dict."""
    table = "quantize.embed.weight" if "code_logits.kernel" in tensors else "quantize.embedding.weight"
    state = {}
    for ours, array in tensors.items():
        array, module = np.asarray(array), ours.rpartition(".")[0].replace("code_logits", "quantize.proj")
        if ours == "codebook.embedding":
            state[table] = array
        elif ours.endswith(".kernel"):
            state[f"{module}.weight"] = np.array(array.transpose(3, 2, 0, 1), order="C")  # HWIO -> OIHW
        else:
            state[f"{module}.weight" if ours.endswith(".scale") else f"{module}.bias"] = array
    return state


def training_checkpoint(state: dict[str, np.ndarray], **more) -> dict:
    """A state_dict with all that pytorch-lightning writes around it."""
    loss = {"loss.discriminator.main.0.weight": np.ones((4, 3, 4, 4)), "loss.logvar": np.zeros(())}
    return {
        "epoch": 12, "global_step": 34567, "pytorch-lightning_version": "1.0.8", **more,
        "state_dict": {**state, **loss},
        "optimizer_states": [call(name("builtins", "print"), "an optimizer")],
    }  # fmt: skip


def random_vqgan(config: VQGANConfig) -> VQGAN:
    """Random weights under which every part of the network matters, and tokens vary."""
    random = np.random.default_rng(0)
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: VQGAN(config, rngs=nnx.Rngs(0))))
    arrays = {}
    for key, leaf in flatten(shapes).items():
        array = random.normal(size=leaf.shape)
        if key.endswith(".kernel"):
            array /= np.sqrt(array[..., 0].size)
        elif key.endswith((".scale", ".bias")):
            array = array / 5 + key.endswith(".scale")
        arrays[key] = jnp.asarray(array, jnp.float32)
    return nnx.merge(graphdef, unflatten(arrays, shapes))


def loaded(checkpoint: Path) -> VQGAN:
    """As `VQGAN.from_pretrained` reads these files, by hand."""
    config = VQGANConfig.from_dict(vqgan_yaml_config(find_yaml(checkpoint)))
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: VQGAN(config, rngs=nnx.Rngs(0))))
    tensors = VQGAN.map_keys(read_torch_file(checkpoint), config)
    arrays = {key: jnp.asarray(tensor.read()) for key, tensor in tensors.items()}
    assert {key: a.shape for key, a in arrays.items()} == {key: a.shape for key, a in flatten(shapes).items()}
    return nnx.merge(graphdef, unflatten(arrays, shapes))


def test_the_golden_vqgan_as_a_training_checkpoint(tmp_path):
    config = VQGANConfig.from_dict(json.loads((GOLDEN / "config.json").read_text()))
    flax = key_mapping.vqgan(load_tensors(GOLDEN), config)
    arrays = {key: t.read() if hasattr(t, "read") else t for key, t in flax.items()}
    checkpoint = save(tmp_path / "last.ckpt", training_checkpoint(in_torch(arrays)))
    write_yaml(tmp_path / "model.yaml", config)
    vqgan, golden = loaded(checkpoint), np.load(GOLDEN / "golden.npz")
    assert vqgan.config == dataclasses.replace(config, pixel_range=(-1, 1))
    for key, array in flatten(nnx.state(vqgan)).items():
        np.testing.assert_array_equal(array, arrays[key], err_msg=key)
    # The network is the same, and callers speak to it in [0, 1].
    latents = vqgan.encode_latents((golden["pixel_values"] + 1) / 2)
    np.testing.assert_allclose(latents, golden["latents"], rtol=0, atol=1e-4)
    images = vqgan.decode(golden["random_indices"])
    np.testing.assert_allclose(images, (golden["random_decoded"] + 1) / 2, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_gumbel_tokens_are_the_largest_logits(tmp_path):
    config = dataclasses.replace(SMALL, quantizer="gumbel")
    vqgan = random_vqgan(config)
    state = in_torch(flatten(nnx.state(vqgan)))
    assert state["quantize.proj.weight"].shape == (40, 12, 1, 1) and state["quantize.embed.weight"].shape == (40, 12)
    write_yaml(tmp_path / "model.yaml", config, "GumbelVQ", GUMBEL)
    again = loaded(save(tmp_path / "last.ckpt", training_checkpoint(state)))
    assert again.config == config

    images = np.random.default_rng(1).uniform(size=(2, 16, 16, 3)).astype(np.float32)
    latents = np.asarray(again.encode_latents(images), np.float64)
    logits = latents @ state["quantize.proj.weight"][:, :, 0, 0].T + state["quantize.proj.bias"]
    tokens = again.encode(images)
    np.testing.assert_array_equal(tokens, logits.argmax(-1).reshape(2, 16))
    assert len(np.unique(tokens)) >= 5
    codes = state["quantize.embed.weight"][np.asarray(tokens)].reshape(2, 4, 4, 12)
    np.testing.assert_allclose(again.decode(tokens), again.decode_latents(codes), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(tokens, vqgan.encode(images))


def test_the_published_gumbel_f8_has_the_shapes_of_taming(tmp_path):
    config = vqgan_yaml_config(write_yaml(tmp_path / "model.yaml", F8_8192, "GumbelVQ", GUMBEL))
    config = VQGANConfig.from_dict(config)
    assert config == dataclasses.replace(F8_8192, quantizer="gumbel", pixel_range=(-1, 1))
    assert (config.downscale, config.grid) == (8, 32)
    shapes = flatten(nnx.state(nnx.eval_shape(lambda: VQGAN(config, rngs=nnx.Rngs(0)))))
    assert shapes["code_logits.kernel"].shape == (1, 1, 256, 8192)
    assert shapes["codebook.embedding"].shape == (8192, 256)
    assert shapes["encoder.down.3.attn.1.q.kernel"].shape == (1, 1, 512, 512)


@pytest.mark.slow
@pytest.mark.parametrize("quantizer", ["nearest", "gumbel"])
def test_the_same_as_in_torch(tmp_path, quantizer):
    torch = pytest.importorskip("torch", reason="needs the extra `oracle`")
    config = dataclasses.replace(SMALL, quantizer=quantizer)
    state = {key: torch.tensor(array) for key, array in in_torch(flatten(nnx.state(random_vqgan(config)))).items()}
    write_yaml(tmp_path / "model.yaml", config, "GumbelVQ" if quantizer == "gumbel" else "VQModel")
    torch.save({"state_dict": state, "callbacks": {Path: 1}}, tmp_path / "last.ckpt")
    vqgan = loaded(tmp_path / "last.ckpt")

    images = np.random.default_rng(1).uniform(size=(2, 16, 16, 3)).astype(np.float32)
    pixels = torch.tensor(images).permute(0, 3, 1, 2) * 2 - 1
    latents, tokens, decoded = torch_vqgan(torch, state, config, pixels)
    np.testing.assert_allclose(vqgan.encode_latents(images), latents.permute(0, 2, 3, 1), rtol=0, atol=1e-4)
    np.testing.assert_array_equal(vqgan.encode(images), tokens.flatten(1))
    assert len(np.unique(tokens)) >= 5
    wanted = (decoded.permute(0, 2, 3, 1) + 1) / 2
    np.testing.assert_allclose(vqgan.decode(tokens.flatten(1).numpy()), wanted, rtol=0, atol=1e-4)


def torch_vqgan(torch, state, config, pixels):
    """The paper's network on a state_dict with taming's names: (latents, tokens, decoded pixels), channels first."""
    F = torch.nn.functional
    levels = range(len(config.ch_mult))

    def conv(x, module, **options):
        return F.conv2d(x, state[f"{module}.weight"], state[f"{module}.bias"], **options)

    def norm(x, module):
        return F.group_norm(x, 32, state[f"{module}.weight"], state[f"{module}.bias"], eps=1e-6)

    def block(x, module):
        h = conv(F.silu(norm(x, f"{module}.norm1")), f"{module}.conv1", padding=1)
        h = conv(F.silu(norm(h, f"{module}.norm2")), f"{module}.conv2", padding=1)
        return h + (conv(x, f"{module}.nin_shortcut") if f"{module}.nin_shortcut.weight" in state else x)

    def attention(x, module):
        h = norm(x, f"{module}.norm")
        q, k, v = (conv(h, f"{module}.{part}").flatten(2) for part in "qkv")  # [batch, channels, positions]
        weights = torch.softmax(torch.einsum("bcq,bck->bqk", q, k) * q.shape[1] ** -0.5, dim=-1)
        return x + conv(torch.einsum("bqk,bck->bcq", weights, v).reshape(x.shape), f"{module}.proj_out")

    def level(x, module, blocks):
        for j in range(blocks):
            x = block(x, f"{module}.block.{j}")
            if f"{module}.attn.{j}.q.weight" in state:
                x = attention(x, f"{module}.attn.{j}")
        return x

    def mid(x, module):
        return block(attention(block(x, f"{module}.block_1"), f"{module}.attn_1"), f"{module}.block_2")

    def end(x, module):
        return conv(F.silu(norm(x, f"{module}.norm_out")), f"{module}.conv_out", padding=1)

    x = conv(pixels, "encoder.conv_in", padding=1)
    for i in levels:
        x = level(x, f"encoder.down.{i}", config.num_res_blocks)
        if i != levels[-1]:
            x = conv(F.pad(x, (0, 1, 0, 1)), f"encoder.down.{i}.downsample.conv", stride=2)
    latents = conv(end(mid(x, "encoder.mid"), "encoder"), "quant_conv")
    if "quantize.proj.weight" in state:
        codes, tokens = state["quantize.embed.weight"], conv(latents, "quantize.proj").argmax(1)
    else:
        codes = state["quantize.embedding.weight"]
        tokens = (latents.permute(0, 2, 3, 1)[..., None, :] - codes).square().sum(-1).argmin(-1)
    x = conv(codes[tokens].permute(0, 3, 1, 2), "post_quant_conv")
    x = mid(conv(x, "decoder.conv_in", padding=1), "decoder.mid")
    for i in reversed(levels):
        x = level(x, f"decoder.up.{i}", config.num_res_blocks + 1)
        if i:
            x = conv(F.interpolate(x, scale_factor=2.0), f"decoder.up.{i}.upsample.conv", padding=1)
    return latents, tokens, end(x, "decoder")


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.touch()


def test_the_checkpoint_of_a_folder(tmp_path):
    assert find_checkpoint(tmp_path) is None
    assert find_checkpoint(tmp_path / "nowhere.ckpt") is None
    run = tmp_path / "checkpoints"
    touch(run / "epoch=3.ckpt")
    for source in (tmp_path, run, run / "epoch=3.ckpt"):
        assert find_checkpoint(source) == run / "epoch=3.ckpt"
    touch(run / "epoch=4.ckpt")
    with pytest.raises(UserError, match=r"several checkpoints \(epoch=3.ckpt, epoch=4.ckpt\): give the path of one"):
        find_checkpoint(tmp_path)
    touch(run / "last.ckpt")
    assert find_checkpoint(tmp_path) == run / "last.ckpt"
    touch(tmp_path / "vqgan.ckpt")
    assert find_checkpoint(tmp_path) == tmp_path / "vqgan.ckpt"


def test_the_yaml_of_a_checkpoint(tmp_path):
    checkpoint = tmp_path / "vqgan[1].ckpt"
    with pytest.raises(UserError, match=r"no YAML file beside it: .* needs vqgan\[1\]\.yaml"):
        find_yaml(checkpoint)
    for file in ("anything.yaml", "2020-project.yaml", "config.yaml", "model.yaml", "vqgan[1].yaml"):
        touch(tmp_path / file)  # each is a better guess than those before
        assert find_yaml(checkpoint).name == file
    configs = tmp_path / "run" / "configs"
    (tmp_path / "run").mkdir()
    touch(configs / "2021-lightning.yaml", configs / "2021-project.yaml")
    assert find_yaml(tmp_path / "run" / "checkpoints" / "last.ckpt") == configs / "2021-project.yaml"
    touch(configs / "2022-project.yaml")
    with pytest.raises(UserError, match=r"several YAML files .*\(2021-lightning.yaml, .*: name its own last\.yaml"):
        find_yaml(tmp_path / "run" / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("vqgan.VQModel", "cond_transformer.Net2NetTransformer", r"taming\.models\..*Net2NetTransformer is not supp"),
        (
            "taming.models.vqgan.VQModel",
            "[1]",
            r"model\.target of another kind than text is not supported \(supported: V",
        ),
        ("n_embed: 40", "", "model.params lacks n_embed"),
        ("ch: 32", "", "model.params.ddconfig lacks ch$"),
        ("ddconfig:", "other:", "model.params lacks ddconfig"),
        ("model:", "data:", "the file lacks model"),
        ("monitor: val/rec_loss", "remap: used.npy", "model.params.remap"),
        ("monitor: val/rec_loss", "x: !!python/object/apply:os.system [echo]", "not plain YAML: could not determ"),
        ("monitor: val/rec_loss", "x: [", "not plain YAML"),
        ("double_z: false", "\x00", "not plain YAML"),
        ("", "", None),
    ],
)
def test_yaml_files_that_are_no_vqgans(tmp_path, old, new, message):
    path = write_yaml(tmp_path / "model.yaml", SMALL)
    path.write_text(path.read_text().replace(old, new, 1))
    if message is None:
        assert VQGANConfig.from_dict(vqgan_yaml_config(path)) == SMALL
        return
    with pytest.raises(UserError, match=rf"model\.yaml.*{message}") as caught:
        vqgan_yaml_config(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_yaml(tmp_path):
    path = tmp_path / "model.yaml"
    for data, message in (
        (b"", "no named fields"), (b"[1]", "no named fields"), (b"\xff\xfe\xfa", "not plain YAML"),
        (b"[" * 5000, "nested more than 64 deep"), (b"# " + b"x" * (1 << 20), "larger than 256 KiB; limit yaml_bytes"),
    ):  # fmt: skip
        path.write_bytes(data)
        with pytest.raises(UserError, match=message):
            vqgan_yaml_config(path)
    with pytest.raises(UserError, match=r"nowhere\.yaml cannot be read"):
        vqgan_yaml_config(tmp_path / "nowhere.yaml")
