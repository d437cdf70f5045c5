"""The house as docs/architecture.md draws it: no circles, and every file that the page names is there."""

import graphlib
import re
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "dalle_mini"
DOORS = {("dalle_mini.models.dalle_bart", "dalle_mini.conversion.surgery")}  # two methods of two lines


def test_no_circle_of_files():
    graph = grimp.build_graph("dalle_mini", cache_dir=None)
    arrows = {
        module: {other for other in graph.find_modules_directly_imported_by(module) if (module, other) not in DOORS}
        for module in graph.modules
    }
    graphlib.TopologicalSorter(arrows).prepare()  # CycleError names the files


def test_every_file_that_the_page_names_is_there():
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    names = set(re.findall(r"`([\w/]+/\w+\.py)`", page))
    missing = [
        name for name in names if not any((folder / name).is_file() for folder in (PACKAGE, *PACKAGE.glob("*/")))
    ]
    assert len(names) > 60 and not missing


def test_the_walks_are_short():
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    for number in (1, 2):
        walk = page.partition(f"## Walk {number}: ")[2].partition("\n## ")[0]
        files = re.findall(r"^\| `([\w/]+\.py)`", walk, re.MULTILINE)
        assert 10 < len(files) <= 20 and all((PACKAGE / name).is_file() for name in files)
