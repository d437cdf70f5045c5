import pytest

from dalle_mini.weights.model_card import model_card


def front_matter(card: str) -> dict:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(card.split("---\n")[1])


def test_a_bundle(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, dtype="float16")
    card = model_card(tmp_path, "acme/pack")
    assert front_matter(card) == {
        "license": "apache-2.0",
        "library_name": "dalle-mini",
        "pipeline_tag": "text-to-image",
        "tags": ["dalle-mini", "dallebart", "vqgan", "clip", "jax", "flax"],
    }
    assert card.count("float16") == 3
    assert "| DalleBart | 2 encoder and 3 decoder layers of width 32, normformer, GLU feed-forward" in card
    assert "| VQGAN | f4, images of 16x16, codebook of 64" in card
    assert 'DalleMini.from_pretrained("acme/pack")' in card


@pytest.mark.parametrize(
    ("network", "loader", "task"),
    [
        ("model", "DalleBart", "text-to-image"),
        ("vqgan", "VQGAN", "image-feature-extraction"),
        ("clip", "CLIP", "zero-shot-image-classification"),
    ],
)
def test_a_network_alone(pipe, tmp_path, network, loader, task):
    import jax

    model = pipe.ranker.clip if network == "clip" else getattr(pipe, network)
    model.save_pretrained(tmp_path)
    card = model_card(tmp_path, "acme/part", license="mit")
    assert front_matter(card)["pipeline_tag"] == task and front_matter(card)["license"] == "mit"
    from flax import nnx

    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model)))
    assert f" {count:,} | float32 |" in card
    assert f'model = {loader}.from_pretrained("acme/part")' in card
