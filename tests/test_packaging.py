from pathlib import Path

import dalle_mini

PACKAGE = Path(dalle_mini.__file__).parent


def test_every_folder_with_code_is_a_package():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_public_names_are_loaded_when_asked_for():
    assert set(dalle_mini.__all__) <= set(dir(dalle_mini))
    assert dalle_mini.DalleMini.__module__ == "dalle_mini.pipeline"


def test_what_ships_is_at_most_30_megabytes():
    assert sum(path.stat().st_size for path in PACKAGE.joinpath("assets").rglob("*") if path.is_file()) <= 40e6
