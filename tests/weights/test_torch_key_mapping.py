"""torch's names and axes -> ours, against the published Flax files of the same networks and against torch itself."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from dalle_mini.models import CLIP
from dalle_mini.weights import key_mapping, torch_key_mapping
from dalle_mini.weights.folder import load_tensors
from dalle_mini.weights.formats.tensors import Tensor

CLIP_FOLDER = Path(__file__).parents[1] / "golden" / "clip"
EMBEDDINGS = "token_embedding", "position_embedding"


def values(tensor) -> np.ndarray:
    return tensor.read() if isinstance(tensor, Tensor) else np.asarray(tensor)


def clip_in_torch() -> dict[str, np.ndarray]:
    """The golden Flax CLIP as torch would store it."""
    state = {}
    for name, tensor in load_tensors(CLIP_FOLDER).items():
        module, _, leaf = name.replace("/", ".").rpartition(".")
        array = values(tensor)
        if leaf in ("kernel", "scale", "embedding") and array.ndim:
            leaf, array = "weight", array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
            array = array.T if array.ndim == 2 and not module.endswith(EMBEDDINGS) else array
        state[f"{module}.{leaf}".strip(".")] = np.array(array, order="C")
    for tower, length in (("text", 20), ("vision", 10)):
        state[f"{tower}_model.embeddings.position_ids"] = np.arange(length)[None]
    return state


def test_clip_is_the_flax_file():
    state = clip_in_torch()
    assert "vision_model.pre_layrnorm.weight" in state and "logit_scale" in state
    assert state["vision_model.embeddings.patch_embedding.weight"].shape == (32, 3, 8, 8)
    ours = key_mapping.clip({name: Tensor.of(array) for name, array in state.items()}, None)
    wanted = key_mapping.clip(load_tensors(CLIP_FOLDER), None)
    assert set(ours) == set(wanted)
    for name in wanted:
        np.testing.assert_array_equal(ours[name].read(), values(wanted[name]), err_msg=name)


def test_clip_from_a_folder_as_openai_publishes_it(tmp_path):
    shutil.copytree(CLIP_FOLDER, folder := tmp_path / "clip")
    (folder / "flax_model.msgpack").unlink()
    safetensors.numpy.save_file(clip_in_torch(), folder / "model.safetensors", metadata={"format": "pt"})
    golden = np.load(CLIP_FOLDER / "golden.npz")
    pixels = golden["pixel_values"].transpose(0, 2, 3, 1)
    logits = CLIP.from_pretrained(folder).similarity(pixels, golden["input_ids"], golden["attention_mask"])
    np.testing.assert_allclose(logits, golden["logits_per_image"], rtol=0, atol=1e-4)


def test_which_layout_it_is():
    assert torch_key_mapping.is_torch(["logit_scale", "text_projection.weight"])
    for flax in ("text_projection/kernel", "text_projection.kernel", "weight/scale", "weight"):
        assert not torch_key_mapping.is_torch([flax])


BART = {
    "model.shared.weight": (30, 8),
    "model.encoder.embed_tokens.weight": (30, 8),
    "model.decoder.embed_tokens.weight": (30, 8),
    "model.encoder.version": (1,),
    "model.encoder.embed_positions.weight": (12, 8),
    "model.encoder.layernorm_embedding.weight": (8,),
    "model.decoder.layers.0.encoder_attn.out_proj.bias": (8,),
    "model.decoder.layers.0.fc1.weight": (16, 8),
    "final_logits_bias": (1, 30),
    "lm_head.weight": (30, 8),
}
BART_IN_FLAX = {
    "shared.embedding": (30, 8),
    "encoder.embed_positions.embedding": (12, 8),
    "encoder.layernorm_embedding.scale": (8,),
    "decoder.layers.0.encoder_attn.out_proj.bias": (8,),
    "decoder.layers.0.fc1.kernel": (8, 16),
    "final_logits_bias": (1, 30),
    "lm_head.kernel": (8, 30),
}


def bart(shapes) -> dict[str, Tensor]:
    return torch_key_mapping.bart({name: Tensor.of(np.ones(shape, np.float32)) for name, shape in shapes.items()})


@pytest.mark.parametrize("absent", ["", "model.shared.weight", "model.encoder.embed_tokens.weight", "coder.embed_t"])
def test_bart_with_its_one_table_under_any_of_its_names(absent):
    shapes = {name: shape for name, shape in BART.items() if not absent or absent not in name}
    assert {name: tensor.shape for name, tensor in bart(shapes).items()} == BART_IN_FLAX


def test_bart_without_the_prefix():
    shapes = {name.removeprefix("model."): shape for name, shape in BART.items()}
    assert {name: tensor.shape for name, tensor in bart(shapes).items()} == BART_IN_FLAX


@pytest.mark.slow
def test_bart_of_transformers(tmp_path):
    pytest.importorskip("torch", reason="needs the extra `oracle`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `oracle`")
    config = transformers.BartConfig(
        vocab_size=30, d_model=8, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=12, max_position_embeddings=10,
    )  # fmt: skip
    state = transformers.BartForConditionalGeneration(config).state_dict()
    found = torch_key_mapping.bart({name: Tensor.of(array.numpy()) for name, array in state.items()})

    projection = {"kernel": (8, 8), "bias": (8,)}
    norm = {"scale": (8,), "bias": (8,)}
    modules = {"embed_positions": {"embedding": (12, 8)}, "layernorm_embedding": norm}
    wanted = {"final_logits_bias": (1, 30), "lm_head.kernel": (8, 30), "shared.embedding": (30, 8)}
    for stack, inner, attentions in (("encoder", 16, ["self"]), ("decoder", 12, ["self", "encoder"])):
        layer = {"final_layer_norm": norm}
        layer |= {"fc1": {"kernel": (8, inner), "bias": (inner,)}, "fc2": {"kernel": (inner, 8), "bias": (8,)}}
        for attention in attentions:
            layer |= {f"{attention}_attn.{p}_proj": projection for p in ("q", "k", "v", "out")}
            layer |= {f"{attention}_attn_layer_norm": norm}
        layers = {f"layers.{i}.{module}": leaves for i in range(2) for module, leaves in layer.items()}
        for module, leaves in (modules | layers).items():
            wanted |= {f"{stack}.{module}.{leaf}": shape for leaf, shape in leaves.items()}
    assert {name: tensor.shape for name, tensor in found.items()} == wanted
    fc1 = state["model.decoder.layers.1.fc1.weight"].numpy()
    np.testing.assert_array_equal(found["decoder.layers.1.fc1.kernel"].read(), fc1.T)


# Sizes small, ratios odd; three ways in which published configs say where a text ends.
@pytest.mark.slow
@pytest.mark.parametrize(("end", "act"), [(2, "quick_gelu"), (40, "gelu"), (49407, "quick_gelu")])
def test_clip_of_transformers(tmp_path, end, act):
    torch = pytest.importorskip("torch", reason="needs the extra `oracle`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `oracle`")
    torch.manual_seed(end)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": act, "initializer_factor": 4.0}
    text = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 40, "max_position_embeddings": 9}
    vision = {"hidden_size": 24, "intermediate_size": 36, "image_size": 12, "patch_size": 4}
    config = transformers.CLIPConfig(
        text_config={**sizes, **text, "eos_token_id": end}, vision_config={**sizes, **vision}, projection_dim=6
    )
    theirs = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # norms and biases start as ones and zeros, which would hide mistakes
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)

    ids = torch.tensor(
        [[48, 7, 40, 3, 49, 49, 0, 0, 0], [48, 5, 6, 40, 8, 9, 49, 40, 40], [48, 40, 49, 1, 1, 1, 1, 1, 1]]
    )
    mask = torch.tensor([[1] * 5 + [0] * 4, [1] * 9, [1] * 3 + [0] * 6])
    pixels = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        wanted = theirs(input_ids=ids, attention_mask=mask, pixel_values=pixels)
    ours = CLIP.from_pretrained(tmp_path)
    images = pixels.permute(0, 2, 3, 1).numpy()
    for found, expected in (
        (ours.text_states(ids.numpy(), mask.numpy())[0], wanted.text_model_output.last_hidden_state),
        (ours.image_states(images)[0], wanted.vision_model_output.last_hidden_state),
        (ours.text_embeds(ids.numpy(), mask.numpy()), wanted.text_embeds),
        (ours.image_embeds(images), wanted.image_embeds),
        (ours.similarity(images, ids.numpy(), mask.numpy()), wanted.logits_per_image),
    ):
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-4)
