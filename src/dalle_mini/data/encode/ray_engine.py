"""The parts of a run on a Ray cluster: Ray Data hands them out, watches the actors and starts again what dies."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dalle_mini.errors import UserError
from dalle_mini.runtime.folders import open_output
from dalle_mini.runtime.installing import install_line

if TYPE_CHECKING:
    from dalle_mini.data.encode.run import Run

TOGETHER = 8  # parts of one task at most: read side by side, and each staged as it is done


def encode_with_ray(
    run: Run, numbers: list[int], out: str, actors: int | None, report: Callable[[int, int, int], None]
) -> None:
    """Stage these parts. `out` must be the same folder on every machine: shared, or in a bucket.

    Joins the cluster of RAY_ADDRESS, or one that was joined before; else starts one on this machine. An actor loads
    the networks once and takes one GPU, where the cluster has any. The parts that a dead actor had staged stay; another
    actor does the rest of its task.

    Raises:
        UserError: Ray is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError(f"--engine ray needs Ray: {install_line('ray')}") from None
    if not numbers:
        return
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    cluster = ray.cluster_resources()
    gpus = int(cluster.get("GPU", 0))
    actors = min(actors or gpus or 2, len(numbers))
    readers = max(1, int(cluster.get("CPU", 1)) // actors)
    size = max(1, min(TOGETHER, len(numbers) // (2 * actors)))
    tasks = [{"numbers": numbers[start : start + size]} for start in range(0, len(numbers), size)]
    source = ray.put(run)
    staged = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        PartEncoder,
        fn_constructor_args=(source, out, readers),
        batch_size=1,
        concurrency=actors,
        num_gpus=1 if gpus else 0,
    )
    for done in staged.iter_rows():
        report(int(done["images"]), int(done["kept"]), int(done["parts"]))


class PartEncoder:
    """An actor: the same function of a part as without Ray."""

    def __init__(self, source, out: str, readers: int) -> None:
        import ray

        self._run, self._folder, self._readers = ray.get(source), open_output(out), readers

    def __call__(self, batch: dict) -> dict:
        from dalle_mini.data.encode.stage import missing_parts

        total = [0, 0, 0]

        def add(*counts: int) -> None:
            for i, count in enumerate(counts):
                total[i] += count

        numbers = [int(number) for task in batch["numbers"] for number in task]
        missing = set(missing_parts(self._folder, len(self._run.parts)))
        todo = [number for number in numbers if number in missing]  # a dead actor may have done some
        self._run.encode(todo, self._folder, self._readers, add)
        total[2] = len(numbers)
        return {name: [count] for name, count in zip(("images", "kept", "parts"), total, strict=True)}
