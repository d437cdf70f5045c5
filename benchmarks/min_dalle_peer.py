"""min-dalle's own modules with random weights, timed: `min_dalle_peer.py SIZE DTYPE CANDIDATES...`, a JSON line each.

Run by `generation.py --peer` and by `gpu.py`, with a Python that has min-dalle. The weights need not be downloaded.
"""

import contextlib
import json
import resource
import statistics
import sys
import time

import torch
from min_dalle.models import DalleBartDecoder, DalleBartEncoder, VQGanDetokenizer

STEPS, SKIPPED, DECODED = 40, 8, 3


def main() -> None:
    size, dtype, *counts = sys.argv[1:]
    mega, tiny, dtype = size == "mega", size == "tiny", getattr(torch, dtype)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_grad_enabled(False)
    torch.set_default_device(device)  # random weights of mega take a minute on a CPU
    sizes = {
        "attention_head_count": 32 if mega else 16,
        "embed_count": 2048 if mega else 1024,
        "glu_embed_count": 4096 if mega else 2730,
        "layer_count": 24 if mega else 2 if tiny else 12,
        "device": device,
    }
    vocabulary = 50272 if mega else 50264
    encoder = DalleBartEncoder(text_token_count=64, text_vocab_count=vocabulary, **sizes).to(dtype).to(device).eval()
    decoder = DalleBartDecoder(image_vocab_count=16415 if mega else 16384, **sizes).to(dtype).to(device).eval()
    vqgan = VQGanDetokenizer().to(device).eval()
    sync = torch.cuda.synchronize if device == "cuda" else lambda: None
    cast = torch.autocast("cuda", dtype=dtype) if device == "cuda" else contextlib.nullcontext()
    for count in map(int, counts):
        text = torch.full((2, 64), 5, device=device)
        with cast:
            states = encoder(text)[[0] * count + [1] * count]
        mask = torch.ones((2 * count, 1, 1, 64), dtype=torch.bool, device=device)
        cache = torch.zeros((sizes["layer_count"], 4 * count, 256, sizes["embed_count"]), device=device)
        cache = cache.to(dtype) if device == "cpu" else cache
        settings = torch.tensor([1.0, 256, 10.0], device=device)
        tokens, times = torch.zeros((count, 1), dtype=torch.long, device=device), []
        for i in range(STEPS):
            sync()
            start = time.perf_counter()
            with cast:
                drawn, cache = decoder.sample_tokens(
                    settings=settings,
                    attention_mask=mask,
                    encoder_state=states,
                    attention_state=cache,
                    prev_tokens=tokens,
                    token_index=torch.tensor([i], device=device),
                )
            tokens = drawn[:, None]
            sync()
            times.append(time.perf_counter() - start)
        pictures = torch.zeros((count, 256), dtype=torch.long, device=device)
        vqgan(False, pictures[:1])
        sync()
        seconds = []
        for _ in range(DECODED):
            start = time.perf_counter()
            # One at a time: on a CPU that is 1.5 times as fast as the whole grid, which min-dalle decodes at once.
            for picture in pictures:
                vqgan(False, picture[None])
            sync()
            seconds.append(time.perf_counter() - start)
        row = {
            "candidates": count,
            "step_ms": 1e3 * statistics.median(times[SKIPPED:]),
            "vqgan_s": statistics.median(seconds),
            "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
