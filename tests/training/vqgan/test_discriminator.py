"""The discriminator: its losses by hand, torch's network, one picture at a time; and the adaptive weight."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tiny_runs
from dalle_mini.errors import UserError
from dalle_mini.training.engine.trainer import AuxiliaryInputs
from dalle_mini.training.run.checkpoint import Checkpoints
from dalle_mini.training.vqgan.discriminator import (
    GROUP,
    DiscriminatorConfig,
    PatchGAN,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
)

SMALL = DiscriminatorConfig(start=0, n_layers=2, ndf=4)


@pytest.fixture(scope="module")
def network():
    """With norms that are not 1 and 0."""
    made = PatchGAN(SMALL, 3, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(1 if leaf.ndim == 1 else 0, 0.3, leaf.shape), jnp.float32), nnx.state(made)
    )
    nnx.update(made, state)
    return made


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).random((3, 16, 20, 3)).astype(np.float32)


@pytest.mark.slow
def test_the_network_is_torchs(network, images):
    torch = pytest.importorskip("torch")

    def conv(layer, stride):
        kernel, bias = layer.kernel[...], layer.bias
        made = torch.nn.Conv2d(kernel.shape[2], kernel.shape[3], 4, stride, 1, bias=bias is not None)
        made.weight.data = torch.tensor(np.array(kernel).transpose(3, 2, 0, 1))
        if bias is not None:
            made.bias.data = torch.tensor(np.array(bias[...]))
        return made

    def norm(layer, groups):
        made = torch.nn.GroupNorm(groups, layer.scale[...].shape[0], eps=1e-5)
        made.weight.data, made.bias.data = (torch.tensor(np.array(p[...])) for p in (layer.scale, layer.bias))
        return made

    leaky = torch.nn.LeakyReLU(0.2)
    oracle = torch.nn.Sequential(
        *(conv(network.first, 2), leaky),
        *(conv(network.convs[0], 2), norm(network.norms[0], 8), leaky),
        *(conv(network.convs[1], 1), norm(network.norms[1], 16), leaky),
        conv(network.last, 1),
    )
    wanted = oracle(torch.tensor(2 * images - 1).permute(0, 3, 1, 2))[:, 0]
    np.testing.assert_allclose(network(images), wanted.detach().numpy(), atol=1e-4)


def test_a_pictures_logits_depend_on_it_alone(network, images):
    np.testing.assert_allclose(network(images)[1:2], network(images[1:2]), atol=1e-6)


def test_it_has_pix2pix_size():
    made = nnx.eval_shape(lambda: PatchGAN(DiscriminatorConfig(), 3, rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(made))) == 2_765_633  # 70-pixel patches


def test_losses_by_hand():
    real, made = jnp.array([[2.0, 0.5]]), jnp.array([[-3.0, 0.0]])
    assert discriminator_loss("hinge", real, made) == pytest.approx(((0 + 0.5) / 2 + (0 + 1) / 2) / 2)
    assert generator_loss("hinge", made) == pytest.approx(1.5)
    soft = [np.log1p(np.exp(x)) for x in (-2, -0.5, -3, 0)]
    assert discriminator_loss("non-saturating", real, made) == pytest.approx(sum(soft) / 4)
    wanted = (np.log1p(np.exp(3)) + np.log(2)) / 2
    assert generator_loss("non-saturating", made) == pytest.approx(wanted)


def test_adaptive_weight():
    one, other = jnp.full((1, 2, 2, 3), 3.0), jnp.full((1, 2, 2, 3), -0.5)
    assert adaptive_weight(lambda g: 2 * g, one, other) == pytest.approx(6, rel=1e-3)
    assert adaptive_weight(lambda g: g, one, 0 * other) == 1e4  # as published: no more than that
    assert adaptive_weight(lambda g: g, 0 * one, other) == 0


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    fast = dataclasses.replace(SMALL.optimizer, learning_rate=0.01)
    judge = dataclasses.replace(SMALL, n_layers=1, ndf=8, start=5, optimizer=fast)
    # Compiling is the time there is: of one level, with an encoder of three convolutions. The decoder is as ever.
    model = dataclasses.replace(tiny_runs.VQGAN.model, ch_mult=(1,), patch_encoder=True)
    config = dataclasses.replace(tiny_runs.VQGAN, model=model, discriminator=judge)
    return tiny_runs.make("vqgan", tmp_path_factory.mktemp("judged"), tiny_runs.short_loop(), config)


@pytest.mark.slow
def test_gradients_are_those_of_two_losses(trainer):
    """The VQGAN's: of its own loss and, weighed at the last layer, the judgement; the discriminator's: of its own."""
    config, d = trainer.config, trainer.config.discriminator
    params, _ = jax.jit(trainer.parameters)(jax.random.key(0))
    batch = {"images": jnp.asarray(trainer.batch(0)["images"])}
    network = {name: part for name, part in params.items() if name != GROUP}

    def pictures_of(network):
        vqgan = nnx.merge(trainer.graphdef, network)
        images = batch["images"].astype(jnp.float32) / 255
        latents = vqgan.encode_latents(images)
        codes = jax.lax.stop_gradient(vqgan.codebook(vqgan.quantize(latents)))
        pictures = vqgan.decode_latents(latents + jax.lax.stop_gradient(codes - latents))
        return images, pictures, config.commitment_weight * jnp.mean((latents - codes) ** 2)

    def judge(own, seen):
        return trainer._adversary.logits(own, seen)

    def own_loss(network):
        images, pictures, _ = pictures_of(network)
        error = pictures - images
        return config.l1_weight * jnp.mean(jnp.abs(error)) + config.l2_weight * jnp.mean(error**2)

    def judgement(network):
        return generator_loss(d.loss, judge(params[GROUP], pictures_of(network)[1]))

    @jax.jit
    def wanted(network):  # an argument: of constants the compiler would compute the gradients itself
        ours, theirs = jax.grad(own_loss)(network), jax.grad(judgement)(network)
        at_last = [jnp.linalg.norm(g["decoder"]["conv_out"]["kernel"].ravel()) for g in (ours, theirs)]
        weight = d.weight * at_last[0] / (at_last[1] + 1e-4)
        commitment = jax.grad(lambda network: pictures_of(network)[2])(network)
        return jax.tree.map(lambda a, b, c: a + weight * b + c, ours, theirs, commitment), weight

    @jax.jit
    def found(params, step):
        def total(params):
            loss = trainer.loss(params, batch, None, AuxiliaryInputs(step, {}))
            return loss.total / loss.weight, loss

        return jax.grad(total, has_aux=True)(params)

    def close(one, other):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-6), one, other)

    grads, loss = found(params, jnp.int32(5))
    expected, weight = wanted(network)
    assert loss.metrics["adversarial_weight"] / loss.weight == pytest.approx(float(weight), rel=1e-3)
    assert weight > 0.05
    close({name: part for name, part in grads.items() if name != GROUP}, expected)
    images, pictures, _ = jax.jit(pictures_of)(network)

    def of_discriminator(own):
        return discriminator_loss(d.loss, judge(own, images), judge(own, pictures))

    close(grads[GROUP], jax.jit(jax.grad(of_discriminator))(params[GROUP]))

    before, quiet = found(params, jnp.int32(4))  # it has not begun
    assert all(not leaf.any() for leaf in jax.tree.leaves(before[GROUP]))
    assert float(quiet.metrics["discriminator"]) == float(quiet.metrics["adversarial_weight"]) == 0
    assert float(quiet.total) == pytest.approx(float(loss.total), rel=1e-6)  # the curve has no step where it begins


@pytest.mark.slow
def test_it_learns_to_tell_and_its_state_is_in_the_checkpoint(trainer, tmp_path):
    """It learns from its start on, and not before. From a checkpoint all goes on to the bit."""
    program, state = tiny_runs.begin(trainer, tiny_runs.short_loop(steps=20))
    assert set(state.opt_state) == {"rest", GROUP}
    losses = []

    def go_on(state, steps):
        for step in steps:
            state, metrics = program.step(state, program.place(trainer.batch(step)), jax.random.key(step))
            losses.append(float(metrics["discriminator"]))
        return state

    with Checkpoints(tmp_path) as checkpoints:
        state = go_on(state, range(12))
        checkpoints.save(12, state, {})
        checkpoints.wait()
        state = go_on(state, range(12, 20))
        restored, record = checkpoints.restore(program.state)
    assert losses[:5] == [0] * 5
    assert min(losses[6:]) < 0.9 * losses[5]
    for part in ("params/discriminator", "opt_state/discriminator", "extra/uses", "extra/sums", "params/codebook"):
        assert any(name.startswith(part) for name in record["leaves"]), part
    jax.tree.map(np.testing.assert_array_equal, go_on(restored, range(12, 20)), state)
    assert losses[20:] == losses[12:20]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "wasserstein"}, "training.discriminator.loss: 'wasserstein' is none of hinge, non-saturating"),
        ({"start": -1}, "training.discriminator.start: -1 is not a number of 0 or more"),
        ({"n_layers": 0}, "training.discriminator.n_layers: 0 is not a number of 1 or more"),
    ],
)
def test_settings_that_cannot_be(change, message):
    with pytest.raises(UserError, match=message):
        DiscriminatorConfig(**change)


def test_pictures_that_it_cannot_see(tmp_path):
    config = dataclasses.replace(tiny_runs.VQGAN, discriminator=DiscriminatorConfig())
    with pytest.raises(UserError, match=r"n_layers 3 needs images or crops of 24 pixels, not 8"):
        tiny_runs.make("vqgan", tmp_path, tiny_runs.short_loop(), config)
