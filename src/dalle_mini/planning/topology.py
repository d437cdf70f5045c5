"""Names of slices of chips, as clouds sell them: `v3-8`, `v5e-64`, `h100x8`.

Google's numbers count cores of TPU v2 to v4 and v5p, which have two a chip, and chips of v5e and v6e. A
device of JAX is a core of v2 and v3 and a chip of all others: a v3-8 is 4 chips and 8 devices, a v4-8 is 4 chips and 4.
"""

import difflib
import math
from dataclasses import dataclass

from dalle_mini.errors import UserError
from dalle_mini.training.engine.hardware import BY_NAME, Chip

# Chips -> how they are laid out: 2-D meshes of v2, v3, v5e, v6e, and 3-D ones of v4, v5p.
FLAT = {4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)}
DEEP = {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (4, 4, 8), 256: (4, 8, 8)}
OCTAVE = tuple(FLAT)
OLD = (4, 16, 32, 64, 128, 256)  # v2 and v3 come as one board of 4 chips, or as 16 and more of a pod


@dataclass(frozen=True)
class Topology:
    """Some chips of one kind and their network.

    Attributes:
        layout: chips along each side of a TPU slice; empty where every chip reaches every other through a switch.
        cores: TensorCores of a TPU slice.
    """

    name: str
    chip: Chip
    chips: int
    layout: tuple[int, ...] = ()
    cores: int = 0

    @property
    def is_tpu(self) -> bool:
        return bool(self.layout)

    @property
    def devices(self) -> int:
        return self.chips * self.chip.devices

    @property
    def flops(self) -> float:
        """Peak FLOP/s of a device."""
        return self.chip.flops / self.chip.devices

    @property
    def hbm_bytes(self) -> float:
        """Memory of a device."""
        return self.chip.hbm_bytes / self.chip.devices

    @property
    def hbm_bandwidth(self) -> float:
        """Bytes/s of a device."""
        return self.chip.hbm_bandwidth / self.chip.devices

    @property
    def links(self) -> int:
        """Links by which a chip can receive at once: two a side that closes into a ring, one where it has ends."""
        if self.chip.wraps is None:  # every GPU reaches every other
            return self.chip.links
        wraps = self.chip.wraps
        return sum(2 if wraps and side % wraps == 0 else 1 for side in self.layout if side > 1)

    @property
    def interconnect(self) -> float:
        """Bytes/s that a device can receive from others, all links together; the cores of a chip share them."""
        return self.links * self.chip.link_bandwidth / self.chip.devices

    @property
    def compiler_options(self) -> tuple[str, dict[str, str]]:
        """Name and further arguments for `jax.experimental.topologies.get_topology_desc`."""
        family = self.name.partition("-")[0]
        layout = "x".join(map(str, self.layout))
        # By default the compiler sees a v4's two cores as two devices, as no cloud offers them.
        return f"{family}:{layout}", ({"chip_config_name": "megacore"} if family == "v4" else {})

    def __str__(self) -> str:
        if not self.is_tpu:
            return f"{self.name}: {self.chips} {self.chip.name}"
        layout = "x".join(map(str, self.layout))
        devices = "each core a device" if self.chip.devices == 2 else "each chip a device"
        return f"{self.name}: {self.chips} chips of {self.chip.name} ({layout}, {self.cores} cores), {devices}"


def _known() -> dict[str, Topology]:
    found = []
    for family, sizes, layouts, cores, named in (
        ("v2", OLD, FLAT, 2, 2),
        ("v3", OLD, FLAT, 2, 2),
        ("v4", OCTAVE, DEEP, 2, 2),
        ("v5p", OCTAVE, DEEP, 2, 2),
        ("v5e", OCTAVE, FLAT, 1, 1),
        ("v6e", OCTAVE, FLAT, 1, 1),
    ):
        chip = BY_NAME[f"TPU {family}"]
        found += [Topology(f"{family}-{named * n}", chip, n, layouts[n], cores * n) for n in sizes]
    found += [Topology(f"{gpu.lower()}x{n}", BY_NAME[gpu], n) for gpu in ("A100", "H100", "H200") for n in (1, 2, 4, 8)]
    return {topology.name: topology for topology in found}


TOPOLOGIES = _known()


def find_topology(name: str) -> Topology:
    """The topology of that name. Raises UserError where there is none, naming the nearest."""
    found = TOPOLOGIES.get(name.strip().lower().replace("v5litepod", "v5e"))
    if found is None:
        family = name.lower().partition("-")[0]
        same = [known for known in TOPOLOGIES if known.partition("-")[0] == family or known.startswith(family + "x")]
        size = name.lower().partition("-")[2]
        alike = [known for known in TOPOLOGIES if size and known.partition("-")[2] == size]  # in every generation
        near = same or alike or difflib.get_close_matches(name.lower(), TOPOLOGIES, n=4, cutoff=0.4)
        hint = f"there are {', '.join(near)}" if near else f"known are {', '.join(TOPOLOGIES)}"
        raise UserError(f"--topology {name!r:.40}: no such hardware; {hint}")
    return found


assert all(math.prod(layout) == n for table in (FLAT, DEEP) for n, layout in table.items())
