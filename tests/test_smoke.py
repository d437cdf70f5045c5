"""The smoke set, `-m smoke`: each library that is used in a minute's work, at whatever version is installed.

`make test-smoke` runs it with the lowest versions that setup.cfg allows, and with the newest.
"""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dalle_mini.cli import main

pytestmark = [pytest.mark.smoke, pytest.mark.slow]

SMALL = """\
network: seq2seq
data: {tokenizer: shipped}
training:
  model: {encoder_vocab_size: 4096, image_vocab_size: 6144, max_text_length: 32, d_model: 16, encoder_layers: 1,
    encoder_attention_heads: 2, encoder_ffn_dim: 16, decoder_layers: 1, decoder_attention_heads: 2, decoder_ffn_dim: 16}
loop: {steps: 4, batch_size: 4, log_every: 1, eval_every: 4, checkpoint_minutes: 0.0001}
"""


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """Twelve images with captions, encoded with the shipped VQGAN."""
    images, tokens = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("encoded") / "tokens"
    rng = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(rng.integers(0, 256, (128, 128, 3), np.uint8)).save(images / f"{number:02d}.png")
        (images / f"{number:02d}.txt").write_text(f"image {number}\n")
    assert main(["encode", str(images), str(tokens), "--workers", "0", "--validation", "0.3"]) == 0
    return tokens


def test_a_prompt_is_drawn(tmp_path):
    assert main(["generate", "a red apple", "--candidates", "1", "--output", str(tmp_path)]) == 0
    assert Image.open(tmp_path / "a-red-apple" / "01.png").size == (128, 128)


def test_images_are_encoded(tokens):
    assert json.loads((tokens / "manifest.json").read_text())["rows"] == 12


def test_a_run_goes_on_after_a_kill(tokens, tmp_path):
    config, out = tmp_path / "small.yaml", tmp_path / "run"
    config.write_text(SMALL)
    killed = f"""if True:
        import os
        from dalle_mini.cli import main
        from dalle_mini.data.tokens.batches import TokenBatches
        at = TokenBatches.at
        TokenBatches.at = lambda self, step: at(self, step) if step < 3 else os.kill(os.getpid(), {signal.SIGKILL})
        main(["train", {str(config)!r}, "--output", {str(out)!r}, {f"data.train={tokens}"!r}])
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", killed], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert main(["train", "--output", str(out)]) == 0
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [one["step"] for one in records if "loss" in one] == [1, 2, 3, 4]
    assert (out / "final" / "model.safetensors").is_file()
