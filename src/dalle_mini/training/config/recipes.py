"""The recipes: configs that ship with the package and are called by name, as in `dalle-mini train mini`."""

import os
from pathlib import Path

from dalle_mini.errors import UserError, listed
from dalle_mini.runtime.paths import nearest

FOLDER = Path(__file__).parents[2] / "recipes"


def names() -> list[str]:
    """The names of all recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find(config: str | os.PathLike) -> Path:
    """The file of a recipe, or the path that `config` is; whoever reads a file tells what is wrong with it.

    A recipe's name means the recipe whatever lies in the working directory, so that a command does the same everywhere.
    `./mini` is the file of that name.

    Raises:
        UserError: the name of a recipe is meant, by its looks, and it is another one.
    """
    config = os.fspath(config)
    if config in names():
        return FOLDER / f"{config}.yaml"
    path = Path(config)
    if not os.path.lexists(path):
        if path.stem in names():
            raise UserError(f"{config}: no such file; the recipe is called {path.stem}, without a folder or an ending")
        if path.name == config and not path.suffix:
            near = nearest(config, names())
            raise UserError(f"{config}: no such recipe or file{near}; recipes are {listed(names(), 20)}")
    return path


def summary(name: str) -> str:
    """The first sentence of a recipe's head."""
    head = (FOLDER / f"{name}.yaml").read_text("utf-8").partition("\n#\n")[0]
    return " ".join(line.removeprefix("#").strip() for line in head.splitlines()).partition(". ")[0].removesuffix(".")
