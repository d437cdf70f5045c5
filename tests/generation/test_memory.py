"""How much memory there is to draw in."""

import pytest

from dalle_mini.generation.memory import _free_in_container


@pytest.mark.parametrize(
    ("inside", "limit", "used", "reclaimable"),
    [
        (".", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_a_containers_limit_counts(tmp_path, inside, limit, used, reclaimable):
    assert _free_in_container(tmp_path) == float("inf")
    folder = tmp_path / inside
    folder.mkdir(exist_ok=True)
    (folder / limit).write_text("1000\n")
    (folder / used).write_text("700\n")
    (folder / "memory.stat").write_text(f"anon 500\n{reclaimable} 150\n")
    assert _free_in_container(tmp_path) == 450
    (folder / limit).write_text("max\n")
    assert _free_in_container(tmp_path) == float("inf")
