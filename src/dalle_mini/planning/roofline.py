"""How fast a step could be at best: the longest of its arithmetic, its memory traffic and its exchange.

This is a bound, not a forecast: each of the three runs at the chip's peak, and all three overlap perfectly (Williams et
al. 2009, "Roofline"). Well-tuned programs of this size reach 35 to 42 % MFU on TPUs.
"""

from dataclasses import dataclass

from dalle_mini.planning.topology import Topology
from dalle_mini.training.engine.flops import Product

COMPUTE_BYTES = 2  # a bfloat16, in products and gathered weights
STATE_BYTES = 4  # a float32, in parameters and gradients
DAY = 86_400.0


@dataclass(frozen=True)
class Work:
    """The work of a device in an update."""

    flops: float  # with what is computed again
    hbm_bytes: float
    wire_bytes: float  # received from other devices


@dataclass(frozen=True)
class Bound:
    """Seconds of an update, and what follows from them.

    Attributes:
        mfu: the model's FLOPs (forward and backward, once) over those that the chips could do in that time.
        dollars, dollars_spot: for a million images at the bound; None where no price is known.
    """

    compute: float
    hbm: float
    interconnect: float
    mfu: float
    images_a_day: float
    dollars: float | None
    dollars_spot: float | None

    @property
    def seconds(self) -> float:
        return max(self.compute, self.hbm, self.interconnect)

    @property
    def limit(self) -> str:
        parts = {"arithmetic": self.compute, "memory traffic": self.hbm, "interconnect": self.interconnect}
        return max(parts, key=lambda part: parts[part])


def bound(work: Work, topology: Topology, *, images: int, flops_per_image: float) -> Bound:
    """The bound of an update of so many images, on all devices together."""
    compute = work.flops / topology.flops
    hbm = work.hbm_bytes / topology.hbm_bandwidth
    interconnect = work.wire_bytes / topology.interconnect
    seconds = max(compute, hbm, interconnect)
    hours = 1e6 / images * seconds / 3600

    def cost(price: float | None) -> float | None:
        return None if price is None else price * topology.chips * hours

    return Bound(
        compute=compute,
        hbm=hbm,
        interconnect=interconnect,
        mfu=images * flops_per_image / (seconds * topology.devices * topology.flops),
        images_a_day=images / seconds * DAY,
        dollars=cost(topology.chip.dollars),
        dollars_spot=cost(topology.chip.dollars_spot),
    )


def least_traffic(
    products: list[Product],
    remat: str,
    *,
    images: float,
    microbatches: int,
    model: int,
    parameters: float,
    state: float,
) -> float:
    """The least bytes that a device's memory moves in an update.

    Each product reads both sides and writes its result once; the gradient does so for two products of the same three
    matrices. Elementwise work counts as part of the products, and weights are read once a microbatch. The update reads
    parameters and gradients and writes parameters, and each microbatch adds its gradients to a sum.

    Args:
        images, microbatches: a device computes so many images in an update, in so many microbatches.
        model: so many devices share each product (tensor parallel).
        parameters: the number of parameters that a device keeps.
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
        total += (
            passes * product.times * (images * activations + (microbatches * side if product.weights else 0)) / model
        )
    update = 3 * STATE_BYTES * parameters + 2 * state
    sums = 2 * STATE_BYTES * parameters * (microbatches if microbatches > 1 else 0)
    return COMPUTE_BYTES * total + update + sums
