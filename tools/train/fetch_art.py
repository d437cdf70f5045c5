"""Fetch drawn emoji and their names, and draw each style once. 27 MB are fetched, and 60 MB are kept.

    python tools/train/fetch_art.py
    python tools/train/fetch_art.py --styles openmoji --folder art
    python tools/train/fetch_art.py --world runs/emoji/world.json --things 100

Each package has a pinned version, which is checked by its SHA-512. Files that are there are not fetched again. Needs
npm (Debian's package npm) and, to draw SVG, the Python package resvg-py (pip install '.[art]').

--world writes what the other stages of emoji.sh are to learn.
"""

import shutil
import subprocess
from pathlib import Path

from entry import WORLD, World, parser, user_errors
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from dalle_mini.emoji.packages import CLDR, Package, check_package, default_folder
from dalle_mini.emoji.styles import SHIPPED_STYLES, Style, draw_style, find_style
from dalle_mini.emoji.things import drawn_things
from dalle_mini.emoji.words import ANNOTATIONS, write_annotations
from dalle_mini.errors import UserError
from dalle_mini.runtime import console, files


def fetch(package: Package, folder: Path) -> None:
    """Put a package's archive into the folder, checked. Raises UserError where that fails."""
    path = folder / package.file_name
    if not path.is_file():
        if shutil.which("npm") is None:
            raise UserError("npm is missing, which fetches the art: install it (apt-get install npm)")
        console.answer(f"fetch {package.spec}")
        with files.blamed(folder), files.work_folder(path) as work:
            command = ["npm", "pack", package.spec, "--silent", "--pack-destination", str(work)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise UserError(f"{' '.join(command[:3])} failed: {done.stderr.strip() or done.stdout.strip()}")
            check_package(package, work / package.file_name)
            (work / package.file_name).replace(path)
    check_package(package, path)


def draw(style: Style, folder: Path) -> None:
    if (folder / style.file_name).is_file():
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(f"draw {style.name}")
        draw_style(style, folder, drawn_things(), lambda n, total: progress.update(task, completed=n, total=total))


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--folder", type=Path, help="where the files are kept (default: the user's cache)")
    options.add_argument(
        "--styles", default=",".join(SHIPPED_STYLES), help=f"with commas between (default: {','.join(SHIPPED_STYLES)})"
    )
    options.add_argument("--world", metavar="FILE", type=Path, help=f"{WORLD}, to write")
    options.add_argument("--things", metavar="N", type=int, default=0, help="of the world (default: all)")
    with user_errors():
        args = options.parse_args()
        world = World(args.things, tuple(args.styles.split(",")), str(args.folder.resolve()) if args.folder else "")
        folder = args.folder or default_folder()
        styles = [find_style(name) for name in world.styles]
        for package in dict.fromkeys([*(style.package for style in styles), CLDR]):
            fetch(package, folder)
        for style in styles:
            draw(style, folder)
        write_annotations(folder / CLDR.file_name, folder / ANNOTATIONS, drawn_things())
        if args.world is not None:
            world.save(args.world)
        console.answer(f"{folder}: {', '.join(style.name for style in styles)}")
