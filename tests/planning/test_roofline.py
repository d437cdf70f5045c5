"""Roofline arithmetic, and what slices of chips are called."""

import dataclasses

import pytest

from dalle_mini.errors import UserError
from dalle_mini.planning.roofline import Work, bound, least_traffic
from dalle_mini.planning.topology import TOPOLOGIES, find_topology
from dalle_mini.training.engine.flops import Product


def test_the_longest_part_bounds_a_step():
    v3 = find_topology("v3-8")
    flops, hbm, wire = v3.flops, v3.hbm_bandwidth, v3.interconnect  # a second's worth of each
    slow = bound(Work(2 * flops, 0.5 * hbm, wire), v3, images=80, flops_per_image=0.1 * flops)
    assert (slow.compute, slow.hbm, slow.interconnect) == pytest.approx((2.0, 0.5, 1.0))
    assert slow.seconds == pytest.approx(2) and slow.limit == "arithmetic"
    assert slow.mfu == pytest.approx(0.5)  # 80 x 0.1 of a second's worth, of 2 s x 8 devices
    assert slow.images_a_day == pytest.approx(40 * 86_400)
    assert slow.dollars == pytest.approx(8.0 * 1e6 / 40 / 3600)  # a v3-8 is 8 dollars an hour
    assert slow.dollars_spot == pytest.approx(2.4 * 1e6 / 40 / 3600)
    assert bound(Work(0, hbm, 3 * wire), v3, images=1, flops_per_image=1).limit == "interconnect"
    assert bound(Work(0, hbm, 0), v3, images=1, flops_per_image=1).limit == "memory traffic"


def test_a_price_that_is_not_known_is_none():
    v3 = find_topology("v3-8")
    free = dataclasses.replace(v3, chip=dataclasses.replace(v3.chip, dollars=None))
    assert bound(Work(1, 1, 1), free, images=1, flops_per_image=1).dollars is None


def test_least_traffic_by_hand():
    weights = Product("decoder", rows=3, inner=5, columns=7, times=2)
    attention = Product("decoder", rows=3, inner=5, columns=7, times=2, weights=False)
    # two matrices of 35 read once a piece, [3, 5] and [3, 7] once a picture; three passes of 2 bytes
    move = {"images": 4, "microbatches": 2, "model": 1, "parameters": 0, "state": 0}
    assert least_traffic([weights], "none", **move) == 2 * 3 * 2 * (4 * 36 + 2 * 35)
    assert least_traffic([attention], "none", **move) == 2 * 3 * 2 * 4 * (36 + 35)
    assert least_traffic([weights], "full", **move) == 2 * 4 * 2 * (4 * 36 + 2 * 35)
    assert least_traffic([weights], "dots", **move) == least_traffic([weights], "none", **move)
    assert least_traffic([attention], "dots", **move) == least_traffic([attention], "full", **move)
    closes = dataclasses.replace(weights, closes=True)
    assert least_traffic([closes], "full", **move) == least_traffic([weights], "none", **move)
    split = least_traffic([weights], "none", **move | {"model": 2})
    assert split == least_traffic([weights], "none", **move) / 2
    # parameters are read and written and their gradients read; two microbatches add to a sum, read and written
    assert least_traffic([], "none", **move | {"parameters": 10, "state": 6}) == 120 + 12 + 160
    assert least_traffic([], "none", **move | {"parameters": 10, "state": 6, "microbatches": 1}) == 120 + 12


@pytest.mark.parametrize(
    ("name", "chips", "devices", "cores"),
    [("v3-8", 4, 8, 8), ("v4-8", 4, 4, 8), ("v5p-8", 4, 4, 8), ("v5e-8", 8, 8, 8), ("v6e-8", 8, 8, 8)],
)
def test_what_the_number_in_a_name_counts(name, chips, devices, cores):
    topology = find_topology(name)
    assert (topology.chips, topology.devices, topology.cores) == (chips, devices, cores)


def test_names_reach_256_chips():
    for name in ("v3-512", "v4-512", "v5e-256", "v5p-512", "v6e-256"):
        assert find_topology(name).chips == 256
    assert find_topology("V5litepod-16") == find_topology("v5e-16")
    assert find_topology("v4-8").compiler_options == ("v4:2x2x1", {"chip_config_name": "megacore"})
    assert find_topology("v3-8").compiler_options == ("v3:2x2", {})
    assert all(topology.hbm_bytes > 7e9 and topology.interconnect > 0 for topology in TOPOLOGIES.values())


def test_links_of_rings_and_of_ends():
    assert find_topology("v5e-8").links == 2  # 2x4: one each way at the corner
    assert find_topology("v5e-256").links == 4  # 16x16 closes both ways
    assert find_topology("v4-8").links == 2  # 2x2x1
    assert find_topology("v4-128").links == 6  # a cube of 4x4x4
    assert find_topology("v3-8").interconnect == pytest.approx(82e9)  # two links, two cores
    assert find_topology("h100x8").interconnect == pytest.approx(450e9)


@pytest.mark.parametrize(("name", "near"), [("v3-9", "v3-8"), ("v5-8", "v5e-8"), ("h100x9", "h100x8"), ("?", "v3-8")])
def test_unknown_hardware_names_what_there_is(name, near):
    with pytest.raises(UserError, match="no such hardware") as error:
        find_topology(name)
    assert near in str(error.value)
