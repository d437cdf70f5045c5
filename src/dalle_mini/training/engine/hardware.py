"""The rates and prices of chips: the table behind MFU and `dalle-mini plan`.

Peaks and bandwidths are the makers': cloud.google.com/tpu/docs/v3, /v4, /v5e, /v5p, /v6e and NVIDIA's data sheets, read
in November 2026; v2's and the link speeds of v2 and v3 are of "A Domain-Specific Supercomputer for Training Deep Neural
Networks" (Jouppi et al. 2020). No chip reaches its peak, so what is divided by one is a bound.

Prices are lists' in dollars a chip and hour, without storage and network, and they move: see each one's date.
"""

from __future__ import annotations

from dataclasses import dataclass

GB = 1e9
GIB = 2**30
TERA = 1e12


@dataclass(frozen=True)
class Chip:
    """One chip. JAX sees `devices` of them (the two cores of a TPU v2 or v3 are devices of their own).

    Attributes:
        kinds: names in `jax.Device.device_kind`.
        flops: peak FLOP/s of bfloat16 matrix products, dense, accumulating in float32.
        hbm_bytes: memory that a program can have, all devices together. For TPUs the compiler (libtpu 0.0.42) says how
            much is available, a little less than is built in.
        hbm_bandwidth: bytes/s.
        links, link_bandwidth: how many ways out there are to other chips, and bytes/s of each in one direction.
        wraps: sides of a slice from which on a TPU's links close into a ring, where they are a multiple of it.
        dollars, dollars_spot: list price of an hour, and preemptible; None where none is known.
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    links: int
    link_bandwidth: float
    devices: int = 1
    wraps: int | None = None
    dollars: float | None = None
    dollars_spot: float | None = None


# Google's prices: us-central1 (v4: us-central2) in mid-2026, from cloud.google.com/tpu/pricing as the skypilot catalog
# (github.com/skypilot-org/skypilot-catalog, catalogs/v7/gcp) keeps it. Spot prices differ by region up to twofold.
# v2, v3: the list of 2021 to 2025, 4.50 and 8.00 dollars for four chips, preemptible 1.35 and 2.40.
CHIPS = (
    Chip(
        name="TPU v2",
        kinds=("TPU v2",),
        flops=46 * TERA,
        hbm_bytes=2 * 7.48 * GIB,
        hbm_bandwidth=700 * GB,
        links=4,
        link_bandwidth=62 * GB,  # 496 Gbit/s
        devices=2,
        wraps=16,
        dollars=1.125,
        dollars_spot=0.3375,
    ),
    Chip(
        name="TPU v3",
        kinds=("TPU v3",),
        flops=123 * TERA,
        hbm_bytes=2 * 15.48 * GIB,
        hbm_bandwidth=900 * GB,
        links=4,
        link_bandwidth=82 * GB,  # 656 Gbit/s
        devices=2,
        wraps=32,
        dollars=2.00,
        dollars_spot=0.60,
    ),
    Chip(
        name="TPU v4",
        kinds=("TPU v4",),
        flops=275 * TERA,
        hbm_bytes=30.75 * GIB,
        hbm_bandwidth=1200 * GB,
        links=6,
        link_bandwidth=50 * GB,
        wraps=4,
        dollars=3.22,
        dollars_spot=0.92,
    ),
    Chip(
        name="TPU v5e",
        kinds=("TPU v5 lite", "TPU v5e"),
        flops=197 * TERA,
        hbm_bytes=15.75 * GIB,
        hbm_bandwidth=819 * GB,
        links=4,
        link_bandwidth=50 * GB,  # 400 GB/s a chip, both directions of four links
        wraps=16,
        dollars=1.20,
        dollars_spot=0.35,
    ),
    Chip(
        name="TPU v5p",
        kinds=("TPU v5", "TPU v5p"),
        flops=459 * TERA,
        hbm_bytes=95.74 * GIB,
        hbm_bandwidth=2765 * GB,
        links=6,
        link_bandwidth=100 * GB,  # 1200 GB/s a chip, both directions of six links
        wraps=4,
        dollars=4.20,
        dollars_spot=1.64,
    ),
    Chip(
        name="TPU v6e",
        kinds=("TPU v6 lite", "TPU v6e"),
        flops=918 * TERA,
        hbm_bytes=31.25 * GIB,
        hbm_bandwidth=1638 * GB,
        links=4,
        link_bandwidth=100 * GB,  # 800 GB/s a chip, both directions of four links
        wraps=16,
        dollars=2.70,
        dollars_spot=0.78,
    ),
    # GPUs: SXM boards, whose NVLink goes through switches: one way out at the sum of the links. Without sparsity.
    Chip(
        name="A100",
        kinds=("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe", "NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"),
        flops=312 * TERA,
        hbm_bytes=80 * GIB,  # of the larger board
        hbm_bandwidth=2039 * GB,
        links=1,
        link_bandwidth=300 * GB,
        dollars=5.03,  # a2-ultragpu, us-central1, mid-2026; smaller clouds ask 1.5 to 2.5
        dollars_spot=2.01,
    ),
    Chip(
        name="H100",
        kinds=("NVIDIA H100 80GB HBM3", "NVIDIA H100 SXM5 80GB"),
        flops=989 * TERA,
        hbm_bytes=79.6 * GIB,
        hbm_bandwidth=3350 * GB,
        links=1,
        link_bandwidth=450 * GB,
        dollars=10.98,  # a3-highgpu, us-east4, mid-2026; smaller clouds ask 2.5 to 4
        dollars_spot=2.52,  # us-central1
    ),
    Chip(
        name="H200",
        kinds=("NVIDIA H200",),
        flops=989 * TERA,
        hbm_bytes=140.4 * GIB,
        hbm_bandwidth=4800 * GB,
        links=1,
        link_bandwidth=450 * GB,
        dollars=5.41,  # an AWS capacity block of p5e, us-east-2, December 2024: approximate
    ),
)
BY_NAME = {chip.name: chip for chip in CHIPS}
_BY_KIND = {kind: chip for chip in CHIPS for kind in chip.kinds}


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`; None of one that is not in the table, a CPU for one.

    A CPU's rate depends on its instructions, cores and clock; `benchmarks/training.py` measures it.
    """
    return _BY_KIND.get(device_kind)


def peak_flops(device_kind: str) -> float | None:
    """Peak bfloat16 FLOP/s of one JAX device (of a TPU v3: of one core), what MFU divides by; None if not known."""
    chip = chip_of(device_kind)
    return None if chip is None else chip.flops / chip.devices


def peak_flops_of_all() -> float | None:
    """The peak bfloat16 FLOP/s of all devices of all processes; None if one is not known, a CPU for example."""
    import jax

    peaks = [peak_flops(device.device_kind) for device in jax.devices()]
    known = [peak for peak in peaks if peak is not None]
    return sum(known) if len(known) == len(peaks) else None
