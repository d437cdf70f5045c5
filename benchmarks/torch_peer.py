"""The same update in plain torch, timed: `torch_peer.py CONFIG BATCH STEPS DTYPE`, CONFIG being JSON; prints JSON.

`training.py --peer` runs it, with a Python that has torch. Plain means what a user of torch would write first:
`scaled_dot_product_attention`, `cross_entropy`, `torch.optim.Adafactor`, and `autocast` for bfloat16.
"""

import contextlib
import json
import statistics
import sys
import time

import torch
from torch import nn
from torch.nn import functional

CUDA = torch.cuda.is_available()


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x, states, *, causal: bool = False):
        q, k, v = (
            layer(rows).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, rows in ((self.q, x), (self.k, states), (self.v, states))
        )
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out(attended.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.norm, self.mid_norm = norm(width, scaled=False), norm(inner, scaled=False)
        self.gate, self.linear = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, x):
        x = self.norm(x)
        return self.out(self.mid_norm(functional.gelu(self.gate(x)) * self.linear(x)))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, *, cross: bool):
        super().__init__()
        self.norms = nn.ModuleList(norm(width, scaled=False) for _ in range(1 + cross))
        self.post_norms = nn.ModuleList(norm(width) for _ in range(1 + cross))
        self.attention = nn.ModuleList(Attention(width, heads) for _ in range(1 + cross))
        self.ffn = FeedForward(width, inner)

    def forward(self, x, states=None):
        h = self.norms[0](x)
        x = x + self.post_norms[0](self.attention[0](h, h, causal=states is not None))
        if states is not None:
            x = x + self.post_norms[1](self.attention[1](self.norms[1](x), states))
        return x + self.ffn(x)


class Stack(nn.Module):
    def __init__(self, rows: int, length: int, layers: int, width: int, heads: int, inner: int, *, cross: bool):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(rows, width), nn.Embedding(length, width)
        self.norm, self.final = norm(width), norm(width, scaled=False)
        self.layers = nn.ModuleList(Layer(width, heads, inner, cross=cross) for _ in range(layers))

    def forward(self, tokens, states=None):
        x = self.norm(self.tokens(tokens) + self.positions.weight[: tokens.shape[1]])
        for layer in self.layers:
            x = layer(x, states)
        return self.final(x)


class Network(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        width, codes = config["d_model"], config["image_vocab_size"] + 1

        def stack(which: str, rows: int, length: int) -> Stack:
            layers, heads, inner = (config[f"{which}_{name}"] for name in ("layers", "attention_heads", "ffn_dim"))
            return Stack(rows, length, layers, width, heads, inner, cross=which == "decoder")

        self.encoder = stack("encoder", config["encoder_vocab_size"], config["text_length"])
        self.decoder = stack("decoder", codes, config["image_length"])
        self.head = nn.Linear(width, codes, bias=False)

    def forward(self, text, tokens):
        return self.head(self.decoder(tokens, self.encoder(text)))


def norm(width: int, *, scaled: bool = True) -> nn.LayerNorm:
    made = nn.LayerNorm(width)
    made.weight.requires_grad_(scaled)  # without a weight, torch has no gradient of it in bfloat16
    return made


def main() -> None:
    config, batch, steps, dtype = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    device = "cuda" if CUDA else "cpu"
    torch.manual_seed(0)
    network = Network(config).to(device)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.02) if parameter.ndim > 1 else None
    optimizer = torch.optim.Adafactor(network.parameters(), lr=1e-3)
    text = torch.randint(0, 16_000, (batch, config["text_length"]), device=device)
    labels = torch.randint(0, 16_000, (batch, config["image_length"]), device=device)
    shifted = torch.cat([torch.full_like(labels[:, :1], config["image_vocab_size"]), labels[:, :-1]], 1)
    cast = contextlib.nullcontext() if dtype == "float32" else torch.autocast(device, dtype=getattr(torch, dtype))
    seconds, processor = [], []
    for _ in range(2 + steps):
        started, used = time.perf_counter(), time.process_time()
        with cast:
            logits = network(text, shifted)
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if CUDA:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        processor.append(time.process_time() - used)
    assert torch.isfinite(loss)
    found = {"seconds": statistics.median(seconds[2:]), "processor_seconds": statistics.median(processor[2:])}
    print(json.dumps(found | {"release": torch.__version__}))


if __name__ == "__main__":
    main()
