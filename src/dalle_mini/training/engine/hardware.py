"""The rates and prices of chips: the table behind MFU and `dalle-mini plan`.

Peaks and bandwidths are the makers': cloud.google.com/tpu/docs/v3, /v4, /v5e, /v5p, /v6e and NVIDIA's data sheets, read
in November 2026; v2's and the link speeds of v2 and v3 are of "A Domain-Specific Supercomputer for Training Deep Neural
Networks" (Jouppi et al. 2020). No chip reaches its peak, so what is divided by one is a bound.

Prices are lists' in dollars a chip and hour, without storage and network, and they move: see each one's date.
"""

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
# A link is told as 496 and 656 Gbit/s for v2 and v3, and for v5e, v5p and v6e all links of a chip, in both directions.
#
# GPUs: SXM boards, whose NVLink goes through switches: one way out at the sum of the links. FLOP/s without sparsity.
# A100: a2-ultragpu in us-central1, mid-2026; smaller clouds ask 1.5 to 2.5 dollars. H100: a3-highgpu in us-east4 (spot:
# us-central1), mid-2026; smaller clouds ask 2.5 to 4. H200: an AWS capacity block of p5e in us-east-2, December 2024:
# approximate.
_A100 = ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe", "NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB")
_H100 = ("NVIDIA H100 80GB HBM3", "NVIDIA H100 SXM5 80GB")
CHIPS = (  # name, kinds, flops, hbm_bytes, hbm_bandwidth, links, link_bandwidth, devices, wraps, dollars, dollars_spot
    Chip("TPU v2", ("TPU v2",), 46 * TERA, 2 * 7.48 * GIB, 700 * GB, 4, 62 * GB, 2, 16, 1.125, 0.3375),
    Chip("TPU v3", ("TPU v3",), 123 * TERA, 2 * 15.48 * GIB, 900 * GB, 4, 82 * GB, 2, 32, 2.00, 0.60),
    Chip("TPU v4", ("TPU v4",), 275 * TERA, 30.75 * GIB, 1200 * GB, 6, 50 * GB, 1, 4, 3.22, 0.92),
    Chip("TPU v5e", ("TPU v5 lite", "TPU v5e"), 197 * TERA, 15.75 * GIB, 819 * GB, 4, 50 * GB, 1, 16, 1.20, 0.35),
    Chip("TPU v5p", ("TPU v5", "TPU v5p"), 459 * TERA, 95.74 * GIB, 2765 * GB, 6, 100 * GB, 1, 4, 4.20, 1.64),
    Chip("TPU v6e", ("TPU v6 lite", "TPU v6e"), 918 * TERA, 31.25 * GIB, 1638 * GB, 4, 100 * GB, 1, 16, 2.70, 0.78),
    Chip("A100", _A100, 312 * TERA, 80 * GIB, 2039 * GB, 1, 300 * GB, 1, None, 5.03, 2.01),  # the larger board's memory
    Chip("H100", _H100, 989 * TERA, 79.6 * GIB, 3350 * GB, 1, 450 * GB, 1, None, 10.98, 2.52),
    Chip("H200", ("NVIDIA H200",), 989 * TERA, 140.4 * GIB, 4800 * GB, 1, 450 * GB, 1, None, 5.41),
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
