"""The memory, exchange and least time of a training run on hardware that is not here.

The hardware's own compiler compiles the update that `dalle-mini train` runs. For TPUs that is libtpu's, which needs no
TPU. A GPU's needs a GPU, so the CPU's compiler takes its place, on as many pretended devices: the split of arrays is
exact then, memory and exchange are estimates.
"""

import dataclasses
import importlib.util
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from dalle_mini.errors import UserError
from dalle_mini.planning import hlo as plan_hlo
from dalle_mini.planning import roofline
from dalle_mini.planning.topology import Topology
from dalle_mini.runtime.installing import install_line
from dalle_mini.training.engine import flops

GIB = 2**30
# They keep libtpu from looking for a TPU, and for the machine that it might be in, and from logging.
TPU_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclass(frozen=True)
class Plan:
    """Figures of one configuration on one topology: memory of a device, times and exchange of an update.

    Attributes:
        estimated: whether another compiler told memory and collectives.
        batch_size: images an update, `images_per_device` at a time on each row of devices, `accumulation` times.
        parameter_bytes, optimizer_bytes, mean_bytes: a device's part of the parameters, of the optimizer's state and
            of the running mean of the parameters.
        working_bytes: activations, gradients and gathered weights.
        optimizer_state_bytes: the whole state, all devices together.
        collectives: None where the program did not compile for want of memory.
    """

    topology: Topology
    estimated: bool
    mesh: tuple[int, int]
    batch_size: int
    accumulation: int
    parameters: int
    parameter_bytes: int
    optimizer_bytes: int
    mean_bytes: int
    working_bytes: float
    peak_bytes: float
    optimizer_state_bytes: int
    collectives: list[plan_hlo.Collective] | None
    flops_per_image: int
    executed_flops_per_image: int
    bound: roofline.Bound
    steps: int

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.topology.hbm_bytes and self.collectives is not None

    @property
    def images_per_device(self) -> int:
        return self.batch_size // (self.mesh[0] * self.accumulation)

    def to_dict(self) -> dict[str, Any]:
        """The fields of `--json`: names tell the units, GiB are 2**30 bytes."""
        return {
            "topology": self.topology.name,
            "chips": self.topology.chips,
            "devices": self.topology.devices,
            "estimated": self.estimated,
            "mesh": {"data": self.mesh[0], "model": self.mesh[1]},
            "batch_size": self.batch_size,
            "accumulation": self.accumulation,
            "pictures_per_device": self.images_per_device,
            "fits": self.fits,
            "peak_gib_per_device": self.peak_bytes / GIB,
            "hbm_gib_per_device": self.topology.hbm_bytes / GIB,
            "parameters": self.parameters,
            "parameters_gib_per_device": self.parameter_bytes / GIB,
            "optimizer_gib_per_device": self.optimizer_bytes / GIB,
            "ema_gib_per_device": self.mean_bytes / GIB,
            "activations_gib_per_device": self.working_bytes / GIB,
            "optimizer_state_mib": self.optimizer_state_bytes / 2**20,
            "collectives": None if self.collectives is None else [vars(one) for one in self.collectives],
            "flops_per_picture": self.flops_per_image,
            "executed_flops_per_picture": self.executed_flops_per_image,
            "roofline_step_seconds": self.bound.seconds,
            "compute_seconds": self.bound.compute,
            "hbm_seconds": self.bound.hbm,
            "interconnect_seconds": self.bound.interconnect,
            "limit": self.bound.limit,
            "mfu_bound": self.bound.mfu,
            "pictures_a_day": self.bound.images_a_day,
            "dollars_per_million_pictures": self.bound.dollars,
            "dollars_per_million_pictures_preemptible": self.bound.dollars_spot,
        }


def prepare(topology: Topology) -> None:
    """Set jax up for compiling for that hardware. Call it before jax is imported.

    Raises:
        UserError: the TPU compiler is not installed.
    """
    if topology.is_tpu and importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology {topology.name}: the TPU compiler is not installed (no TPU is needed for it): "
            f"{install_line('plan')}"
        )
    os.environ.update(TPU_ENVIRONMENT)  # for GPUs too: jax loads libtpu wherever it is installed
    os.environ["TPU_ACCELERATOR_TYPE"] = topology.name if topology.is_tpu else "v3-8"
    if not topology.is_tpu:
        os.environ["JAX_NUM_CPU_DEVICES"] = str(topology.devices)
        if "jax" in sys.modules:
            import jax

            jax.config.update("jax_num_cpu_devices", topology.devices)


def check(run: Any, topology: Topology) -> None:
    """Raises UserError where mesh or batch do not fit the devices, as `make_plan` would after minutes."""
    from dalle_mini.training.engine.sharding import check_batch, make_mesh

    check_batch(make_mesh(run.mesh, _devices(topology)), run.loop.batch_size, run.loop.accumulation)


def make_plan(run: Any, topology: Topology) -> Plan:
    """Compile the update of `run` (a `Seq2SeqRun`) for the topology and read its needs off the program.

    It takes minutes for a TPU. Call `prepare` first, in the same process.

    Raises:
        UserError: the mesh, or the batch over it, does not fit the devices.
    """
    import jax

    from dalle_mini.training.engine.sharding import make_mesh
    from dalle_mini.training.engine.step import step_program
    from dalle_mini.training.tasks import task_of

    mesh = make_mesh(run.mesh, _devices(topology))
    without_data = task_of(run).without_data
    assert without_data is not None  # `run` is a `Seq2SeqRun`
    program = step_program(without_data(run), run.loop, run.mesh, mesh)
    state, data, model = program.state, *mesh.devices.shape
    kept = [_bytes_on_a_device(tree) for tree in (state.params, state.opt_state, state.ema)]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    try:
        step = cast("jax.stages.Wrapped", program.step)  # as its trainer has nothing frozen
        compiled = step.lower(state, program.batch, program.key).compile()
    except jax.errors.JaxRuntimeError as error:
        needed = plan_hlo.out_of_memory(str(error))
        if needed is None:
            raise
        collectives, working, peak = None, max(needed - sum(kept), 0), needed
    else:
        memory = plan_hlo.memory_of(compiled)
        text = compiled.as_text()
        assert text is not None  # XLA tells its programs
        collectives = plan_hlo.collectives(text, topology.devices)
        working, peak = memory.temporaries, memory.peak

    products = run.training.model, run.training.positions
    remat, microbatches = run.training.remat, run.loop.accumulation
    forward = flops.forward_flops(*products)
    work = roofline.Work(
        flops=forward.executed(remat) * run.loop.batch_size / topology.devices,
        hbm_bytes=roofline.least_traffic(
            flops.products(*products),
            remat,
            images=run.loop.batch_size / data,
            microbatches=microbatches,
            model=model,
            parameters=kept[0] / roofline.STATE_BYTES,
            state=kept[1],
        ),
        wire_bytes=sum(one.wire_bytes for one in collectives or ()),
    )
    return Plan(
        topology=topology,
        estimated=not topology.is_tpu,
        mesh=(data, model),
        batch_size=run.loop.batch_size,
        accumulation=microbatches,
        parameters=parameters,
        parameter_bytes=kept[0],
        optimizer_bytes=kept[1],
        mean_bytes=kept[2],
        working_bytes=working,
        peak_bytes=peak,
        optimizer_state_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.opt_state)),
        collectives=collectives,
        flops_per_image=forward.training,
        executed_flops_per_image=forward.executed(remat),
        bound=roofline.bound(work, topology, images=run.loop.batch_size, flops_per_image=forward.training),
        steps=run.loop.steps,
    )


def largest_plan(run: Any, topology: Topology, make: Callable[[Any, Topology], Plan] = make_plan) -> Plan:
    """The plan of the largest batch that fits, with the microbatches and the mesh of `run`.

    If not even one image a device fits, the plan of one image a device.
    """
    first = make(run, topology)
    plans = {first.images_per_device: first}
    unit = first.batch_size // first.images_per_device

    def peak(images: int) -> float:
        if images not in plans:
            loop = dataclasses.replace(run.loop, batch_size=images * unit)
            plans[images] = make(dataclasses.replace(run, loop=loop), topology)
        plan = plans[images]
        return plan.peak_bytes if plan.fits else max(plan.peak_bytes, math.nextafter(topology.hbm_bytes, math.inf))

    return plans[max(1, largest(peak, topology.hbm_bytes, first.images_per_device))]


def largest(measure: Callable[[int], float], limit: float, first: int) -> int:
    """The largest n, from 1, whose measure is within the limit; 0 if there is none. The measure grows with n.

    Each measurement costs minutes, so the next n is where a line through the known points meets the limit. The search
    ends at a gap of 3 % between an n that fits and one that does not.
    """
    known = {first: measure(first)}
    while True:
        fits = max((n for n in known if known[n] <= limit), default=0)
        fails = min((n for n in known if known[n] > limit), default=None)
        if fails is not None and fails - fits <= max(1, 0.03 * fits):
            return fits
        guess = _meeting(known, limit) if len(known) > 1 else 2 * first if fits else first // 2
        guess = min(max(guess, fits + 1), 4 * fits if fails is None else fails - 1)
        known[guess] = measure(guess)


def _meeting(known: dict[int, float], limit: float) -> int:
    """Where the line through the two points next to the limit meets it."""
    (n, low), (m, high) = sorted(sorted(known.items(), key=lambda point: abs(point[1] - limit))[:2])
    slope = (high - low) / (m - n)
    return math.floor(n + (limit - low) / slope) if slope > 0 else 2 * m


def _devices(topology: Topology) -> list[Any]:
    import jax

    if not topology.is_tpu:
        devices = jax.devices("cpu")
        if len(devices) < topology.devices:
            raise RuntimeError("jax had started before `prepare` could set its devices")
        return devices[: topology.devices]
    from jax.experimental import topologies

    name, options = topology.compiler_options
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except RuntimeError as error:  # damaged, or of another version than jax
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"--topology {topology.name}: the TPU compiler cannot be used ({reason:.200}); "
            f"{install_line('plan')} brings one that goes with jax"
        ) from None


def _bytes_on_a_device(tree: Any) -> int:
    import jax

    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
