"""`dalle-mini plan`: the needs and the speed of a training run on hardware that is not here."""

import argparse
import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from dalle_mini.commands.terminal import Help, end_at_once, starting
from dalle_mini.errors import UserError
from dalle_mini.runtime import console
from dalle_mini.runtime.installing import install_line
from dalle_mini.runtime.paths import expanded

GIB = 2**30


def add_plan(verbs) -> None:
    parser = verbs.add_parser(
        "plan",
        help="estimate the memory, time and cost of a training run on a TPU or GPU that you do not have",
        description="Compile the update of a training run for other hardware, and print what each device keeps in\n"
        "memory, what the devices exchange, and the least time and cost. TPUs need their own compiler, which takes\n"
        f"minutes ({install_line('plan')}). GPUs are estimated with the CPU's\n"
        "compiler. The exit code is 0 even if the run does not fit.",
        epilog="example:\n  dalle-mini plan mini --topology v3-8 loop.batch_size=512\n"
        "The number in a name counts cores of v2, v3, v4 and v5p (v3-8 and v4-8 have 4 chips), but chips of v5e, v6e\n"
        "and GPUs.",
        formatter_class=Help,
    )
    parser.intermixed = True
    add = parser.add_argument
    add(
        "config",
        metavar="CONFIG",
        type=expanded,
        help="a recipe, such as mini, or the path of a YAML file, as for `train`",
    )
    add(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="settings that replace those of the config, such as mesh.model=2",
    )
    add(
        "--topology",
        metavar="NAME",
        required=True,
        help="the hardware: v3-8, v4-8, v5e-8, v5p-8, v6e-8, h100x8 ..., up to 256 TPU chips (v3-512, v4-512, v5e-256)",
    )
    add("--max-batch", action="store_true", help="find the largest loop.batch_size that fits; compiles several times")
    add("--json", action="store_true", help="end with one line of JSON")
    parser.set_defaults(run=run_plan, extra="plan")


def run_plan(args: argparse.Namespace) -> None:
    from dalle_mini.planning.topology import find_topology

    topology = find_topology(args.topology)
    with starting():  # compilers ignore Ctrl-C
        from dalle_mini.planning import plan

        plan.prepare(topology)
        from dalle_mini.training.tasks import load_run, task_of

        run = load_run(args.config, args.overrides)
        if task_of(run).without_data is None:
            raise UserError(f"{args.config}: plans are made for the seq2seq network alone")
        plan.check(run, topology)

        def make(run: Any, topology: Any) -> plan.Plan:
            with waiting(f"compiling {run.loop.batch_size} images an update for {topology.name}"):
                return in_thread(lambda: plan.make_plan(run, topology))

        found = plan.largest_plan(run, topology, make) if args.max_batch else make(run, topology)
    console.answer(f"{args.config} on {found.topology}", *describe(found, run))
    if args.max_batch:
        console.answer(largest_line(found))
    if args.json:
        console.answer(json.dumps({"config": str(args.config), **found.to_dict()}), limit=None)


def describe(plan: Any, run: Any) -> Iterator[str]:
    """The lines of a plan."""
    data, model = plan.mesh
    training = run.training
    microbatches = f" in each of {plan.accumulation} microbatches" if plan.accumulation > 1 else ""
    split = "parameters split over all" if run.mesh.fsdp else "parameters whole on each row" if data > 1 else "no split"
    optimizer = f"{training.optimizer.name}, {training.dtype}, remat {training.remat}"
    yield f"{plan.parameters / 1e6:,.1f} M parameters, {optimizer}"
    yield f"mesh {data} x {model} (data x model), {split}"
    yield f"{plan.batch_size:,} images an update, {plan.images_per_device:,} on each row of the mesh{microbatches}"
    if plan.estimated:
        yield "an estimate: there is no GPU compiler here, the CPU's has laid out the memory and placed the exchanges"
    yield from ("", f"{'memory of a device':<34}{'GiB':>8}")
    rows = [("parameters", plan.parameter_bytes), ("optimizer", plan.optimizer_bytes)]
    rows += [("mean of the parameters", plan.mean_bytes)] if plan.mean_bytes else []
    rows += [("activations, gradients, gathered", plan.working_bytes), ("peak", plan.peak_bytes)]
    for name, size in rows:
        yield f"  {name:<32}{size / GIB:8.2f}"
    verdict = "it fits" if plan.fits else "IT DOES NOT FIT"
    yield f"  {'of':<32}{plan.topology.hbm_bytes / GIB:8.2f}  {verdict}"
    yield f"  (optimizer state on all devices together: {plan.optimizer_state_bytes / 2**20:,.1f} MiB)"
    yield from ("", "what a device exchanges with others in an update")
    yield from _exchange(plan)
    yield from ("", "least time of an update, each part at its peak and all overlapped")
    yield from _times(plan)


def _exchange(plan: Any) -> Iterator[str]:
    if plan.collectives is None:
        yield "  not known of a program that does not fit"
    elif not plan.collectives:
        yield "  nothing"
    else:
        yield f"  {'':<22}{'type':<6}{'devices':>8}{'times':>9}{'GiB whole':>11}{'received':>10}"
        for one in plan.collectives:
            whole, received = one.bytes / GIB, one.wire_bytes / GIB
            yield f"  {one.op:<22}{one.dtype:<6}{one.group:>8}{one.count:>9,}{whole:>11.3f}{received:>10.3f}"


def _times(plan: Any) -> Iterator[str]:
    from dalle_mini.runtime.console import duration

    bound, topology = plan.bound, plan.topology
    model, executed = plan.flops_per_image / 1e12, plan.executed_flops_per_image / 1e12
    again = f", {executed:.3f} including recomputation" if executed > model else ""
    parts = (
        ("arithmetic", bound.compute, f"{topology.flops / 1e12:.4g} TFLOP/s; {model:.3f} TFLOP per image{again}"),
        ("memory traffic", bound.hbm, f"{topology.hbm_bandwidth / 1e9:,.0f} GB/s"),
        ("interconnect", bound.interconnect, f"{topology.interconnect / 1e9:,.0f} GB/s, {topology.links} links a chip"),
    )
    for name, seconds, rate in parts if plan.collectives is not None else parts[:2]:
        yield f"  {name:<16}{seconds:9.3f} s   at {rate}"
    yield f"  {'the longest':<16}{bound.seconds:9.3f} s   is {bound.limit}: MFU is at most {bound.mfu:.0%}"
    yield f"  at most {bound.images_a_day / 1e6:,.2f} M images a day{_cost(bound)}"
    least, images = duration(plan.steps * bound.seconds), plan.steps * plan.batch_size / 1e6
    yield f"  the run's {plan.steps:,} updates, {images:,.1f} M images: {least} or more"


def _cost(bound: Any) -> str:
    if bound.dollars is None:
        return ""
    spot = "" if bound.dollars_spot is None else f", {bound.dollars_spot:,.2f} preemptible"
    return f"; a million cost {bound.dollars:,.2f} dollars{spot} (list prices, see training/engine/hardware.py)"


def largest_line(plan: Any) -> str:
    if not plan.fits:
        return "\nnot even one image per device fits: split the model (mesh.model), or use more accumulation or devices"
    return f"\nlargest batch that fits (to 3 %): loop.batch_size={plan.batch_size}"


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """Tell on stderr what takes so long: with a running clock on a terminal, as two lines elsewhere."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    terminal, started = Console(stderr=True, soft_wrap=True), time.monotonic()
    if not terminal.is_terminal:
        console.say(f"{text} ...")
        yield
        console.say(f"{text}: {time.monotonic() - started:.0f} s")
        return
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=terminal, transient=True
    ) as bar:
        bar.add_task(text, total=None)
        yield


def in_thread(work: Callable[[], Any]) -> Any:
    """The result of `work`, done in a thread, so that this one hears Ctrl-C and SIGTERM."""

    found: dict[str, Any] = {}

    def run() -> None:
        try:
            found["result"] = work()
        except BaseException as error:
            found["error"] = error

    thread, earlier = threading.Thread(target=run, daemon=True), signal.getsignal(signal.SIGTERM)
    thread.start()
    while thread.is_alive():
        # Again and again: libtpu installs a handler of its own, which prints its stack.
        signal.signal(signal.SIGTERM, end_at_once)
        thread.join(0.2)
    signal.signal(signal.SIGTERM, earlier or signal.SIG_DFL)
    if "error" in found:
        raise found["error"]
    return found["result"]
