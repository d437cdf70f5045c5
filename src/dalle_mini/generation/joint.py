"""One call of the decoder for candidates of several requests, any of which may be left while the others are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from dalle_mini.errors import UserError
from dalle_mini.generation.decode import UNDRAWABLE, Decoded, decode_tokens
from dalle_mini.generation.engine import Engine
from dalle_mini.generation.optimize import weight_type
from dalle_mini.generation.scheduling import Group, Request, decoding_arguments, least_rows


def draw_jointly(
    engine: Engine, requests: Sequence[Request], count: int, unwanted: Callable[[], np.ndarray]
) -> Iterator[Decoded]:
    """The tokens of `count` candidates of each request, from its own `first` on, at every row of tokens.

    Args:
        requests: of one kind, but for `first`; their settings ask for `count` candidates.
        unwanted: asked at each pause which requests nobody wants any more, bool [requests]. Their rows run on masked:
            the tokens of the others do not change. A program that draws nothing else ends, and so does the whole call.

    Yields:
        `Decoded`, whose tokens and passes are NumPy arrays [requests, count, ...].

    Raises:
        UserError: the logits are not numbers.
    """
    config, devices, length = engine.model.config, engine.devices, engine.model.image_length
    group = Group(list(requests), 0, count, [(0, count)], least_rows(config, weight_type(engine.model)))
    window = group.window(config, devices)
    tokens = np.zeros((len(requests), count, length), np.int32)
    passes = np.zeros((len(requests), count), np.int32)
    streams = []
    most = _most(requests, engine)
    for share in group.shares(count, devices):
        some, numbers = share
        firsts = [request.first + numbers.start for request in requests[some]]
        size = numbers.stop - numbers.start
        arguments = decoding_arguments(requests[some], firsts, size, window, engine.tokenizer.codebook_size, devices)
        stream = decode_tokens(engine.model, every=engine.tokenizer.grid, most=most, **arguments)
        streams.append((share, arguments["keys"].shape, stream))
    drawn = 0

    def advanced(running) -> Decoded | None:
        (some, _), shape, stream = running
        if not drawn:
            return jax.block_until_ready(next(stream))
        try:
            return jax.block_until_ready(stream.send(np.broadcast_to(gone[some, None], shape)))
        except StopIteration:
            return None

    with ThreadPoolExecutor(len(streams)) as pool:
        while True:
            gone = np.asarray(unwanted())
            streams = [one for one in streams if not gone[one[0].requests].all()]
            found = list((map if len(streams) == 1 else pool.map)(advanced, streams))
            if not found or found[0] is None:
                return
            for (share, _, _), decoded in zip(streams, found, strict=True):
                assert decoded is not None  # all streams have the same pauses
                wanted = share.candidates.stop - share.candidates.start  # there may be more, which nobody asked for
                tokens[share], passes[share] = decoded.tokens[:, :wanted], decoded.passes[:, :wanted]
                drawn = decoded.drawn
            if (tokens[~gone] == UNDRAWABLE).any():
                raise UserError(
                    "the decoder's logits are not numbers: its weights are damaged, or too large for this dtype"
                )
            yield Decoded(drawn, tokens, passes)  # type: ignore[arg-type]  # NumPy's


def kind_of_program(requests: Sequence[Request], engine: Engine) -> tuple:
    """Calls of so many requests, of one kind, run the same programs."""
    return requests[0].kind[:-1], _most(requests, engine), any(one.settings.top_k == 0 for one in requests)


def _most(requests: Sequence[Request], engine: Engine) -> int | None:
    """How many of the likeliest tokens are looked at: the model's own number, or a power of two.

    Who draws with every top_k there is must not have a program compiled for each.
    """
    largest, own = max(one.settings.top_k or 0 for one in requests), engine.model.config.sampling.top_k
    if own and largest <= own:
        return own
    power = 1 << (largest - 1).bit_length()
    return power if power < engine.tokenizer.codebook_size else None
