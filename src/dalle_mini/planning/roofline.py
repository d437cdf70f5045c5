"""How fast a step could be at best: the longest of its arithmetic, its memory traffic and its exchange.

A bound, not a forecast: each of the three is taken at the chip's peak and all three as if they overlapped perfectly
(Williams et al. 2009, "Roofline"). What well-tuned programs of this size reach on TPUs is 35 to 42 % MFU.
"""

from __future__ import annotations

from dataclasses import dataclass

from dalle_mini.planning.topology import Topology
from dalle_mini.training.engine.flops import Product

COMPUTE_BYTES = 2  # of a bfloat16 in products and gathered weights
STATE_BYTES = 4  # of a float32 in parameters and gradients
DAY = 86_400.0


@dataclass(frozen=True)
class Work:
    """What a device does in an update."""

    flops: float  # with what is computed again
    hbm_bytes: float
    wire_bytes: float  # received from other devices


@dataclass(frozen=True)
class Bound:
    """Seconds of an update, and what follows from them.

    Attributes:
        mfu: FLOPs of the model (forward and backward, once) over what the chips could do in that time.
        dollars, dollars_spot: for a million pictures at the bound; None where no price is known.
    """

    compute: float
    hbm: float
    interconnect: float
    mfu: float
    pictures_a_day: float
    dollars: float | None
    dollars_spot: float | None

    @property
    def seconds(self) -> float:
        return max(self.compute, self.hbm, self.interconnect)

    @property
    def limit(self) -> str:
        parts = {"arithmetic": self.compute, "memory traffic": self.hbm, "interconnect": self.interconnect}
        return max(parts, key=parts.get)


def bound(work: Work, topology: Topology, *, pictures: int, flops_per_picture: float) -> Bound:
    """Of an update of so many pictures, on all devices together."""
    compute = work.flops / topology.flops
    hbm = work.hbm_bytes / topology.hbm_bandwidth
    interconnect = work.wire_bytes / topology.interconnect
    seconds = max(compute, hbm, interconnect)
    hours = 1e6 / pictures * seconds / 3600

    def cost(price: float | None) -> float | None:
        return None if price is None else price * topology.chips * hours

    return Bound(
        compute=compute,
        hbm=hbm,
        interconnect=interconnect,
        mfu=pictures * flops_per_picture / (seconds * topology.devices * topology.flops),
        pictures_a_day=pictures / seconds * DAY,
        dollars=cost(topology.chip.dollars),
        dollars_spot=cost(topology.chip.dollars_spot),
    )


def least_traffic(
    products: list[Product], remat: str, *, pictures: float, pieces: int, model: int, parameters: float, state: float
) -> float:
    """Bytes that a device's memory moves at least in an update.

    Each product reads both sides and writes its result once; the gradient does so for two products of the same three
    matrices; elementwise work is taken to be part of the products, and weights to be read once a piece. The update
    reads parameters and gradients and writes parameters, and each piece adds its gradients to a sum.

    Args:
        pictures: that a device computes in an update, in so many `pieces`.
        model: devices that share each product (tensor parallel).
        parameters: how many a device keeps.
        state: bytes of its part of the optimizer's state.
    """
    kept = {"none": 3, "dots": 3, "full": 4}[remat]  # passes over the products: one forward, two backward, one again
    total = 0.0
    for product in products:
        passes = 3 if product.part == "head" or product.closes else kept
        if remat == "dots" and not product.weights:
            passes += 1
        side = product.inner * product.columns
        activations = product.rows * (product.inner + product.columns) + (0 if product.weights else side)
        total += passes * product.times * (pictures * activations + (pieces * side if product.weights else 0)) / model
    update = 3 * STATE_BYTES * parameters + 2 * state
    sums = 2 * STATE_BYTES * parameters * (pieces if pieces > 1 else 0)
    return COMPUTE_BYTES * total + update + sums
