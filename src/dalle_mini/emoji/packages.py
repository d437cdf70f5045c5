"""The npm packages that hold drawn emoji and their names: pinned, checked, and kept in one folder.

`tools/train/fetch_art.py` fetches them. Nothing here uses the network.
"""

import base64
import hashlib
import tarfile
from dataclasses import dataclass
from pathlib import Path

from dalle_mini.errors import UserError

FETCH = "python tools/train/fetch_art.py"
LARGEST = 1 << 28  # bytes of a member; the largest is the 4 MB of an index


@dataclass(frozen=True)
class Package:
    """One version of an npm package.

    Attributes:
        name: its name in the registry.
        version: the version that is read.
        integrity: the SHA-512 of its archive, as the registry states it: "sha512-" and base64.
        credit: a Markdown sentence that names the authors.
        licence: the SPDX name of the licence of what is read from it.
    """

    name: str
    version: str
    integrity: str
    credit: str
    licence: str

    @property
    def spec(self) -> str:
        """The package as `npm pack` wants it."""
        return f"{self.name}@{self.version}"

    @property
    def file_name(self) -> str:
        """The archive's name, as `npm pack` writes it: "iconify-json-noto-1.2.9.tgz"."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


NOTO = Package(
    "@iconify-json/noto",
    "1.2.9",
    "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    "[Noto Emoji](https://github.com/googlefonts/noto-emoji), copyright 2013 Google, Inc.",
    "Apache-2.0",
)
FLUENT_3D = Package(
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
    "[Fluent Emoji](https://github.com/microsoft/fluentui-emoji), copyright Microsoft Corporation; packed by LobeHub, "
    "copyright 2023 LobeHub",
    "MIT",
)
FLUENT_FLAT = Package(
    "@iconify-json/fluent-emoji-flat",
    "1.2.6",
    "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    "[Fluent Emoji](https://github.com/microsoft/fluentui-emoji), copyright Microsoft Corporation",
    "MIT",
)
TWEMOJI = Package(
    "@iconify-json/twemoji",
    "1.2.5",
    "sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
    "[Twemoji](https://github.com/jdecked/twemoji), copyright Twitter, Inc and other contributors",
    "CC-BY-4.0",
)
OPENMOJI = Package(
    "openmoji",
    "17.0.0",
    "sha512-EBnYrNGdcdw+OSXmENeNE1yBNRu6tOraTmoOyUbJkTmvT/+XETp8RZLSJFzD3lrPc5N9CzsyPnRTk0Vp4UaI9w==",
    "[OpenMoji](https://openmoji.org), the open-source emoji and icon project",
    "CC-BY-SA-4.0",
)
CLDR = Package(
    "cldr-annotations-full",
    "48.2.0",
    "sha512-DV7A+rEcgUSNTRsVGNGqBZRmAkGfwhGHO5Q1dRwzBoBnVrHWp804JP7/QJdEc66iHmx3+zLWVIMCFLm0lW7PUQ==",
    "[Unicode CLDR](https://cldr.unicode.org), copyright 2004-2026 Unicode, Inc.",
    "Unicode-3.0",
)


def default_folder() -> Path:
    """Where archives and drawn styles are kept if no folder is named: in the user's cache."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("dalle-mini")) / "art"


def find_package(package: Package, folder: Path) -> Path:
    """The package's archive in `folder`. Raises UserError, with the command that fetches it, if it is missing."""
    path = folder / package.file_name
    if not path.is_file():
        raise UserError(f"{path}: the package {package.spec} is missing; fetch it with: {FETCH}")
    return path


def check_package(package: Package, path: Path) -> None:
    """Raises UserError if the file is not the pinned version's archive, byte for byte."""
    try:
        digest = hashlib.sha512(path.read_bytes()).digest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    found = f"sha512-{base64.b64encode(digest).decode()}"
    if found != package.integrity:
        raise UserError(
            f"{path}: not {package.spec}: its checksum is {found}, not {package.integrity}; delete the file"
        )


def read_members(path: Path, *names: str) -> list[bytes]:
    """Some files of an archive, by their names in the package. Raises UserError if one is missing."""
    wanted = {f"package/{name}": number for number, name in enumerate(names)}
    found: dict[int, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.name in wanted and member.isreg() and member.size <= LARGEST:
                    stream = archive.extractfile(member)
                    assert stream is not None  # a regular file has one
                    found[wanted[member.name]] = stream.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a package's archive ({error}); delete it, then run: {FETCH}") from None
    for name, number in zip(names, range(len(names)), strict=True):
        if number not in found:
            raise UserError(f"{path}: {name} is missing")
    return [found[number] for number in range(len(names))]


def list_members(path: Path, start: str) -> list[str]:
    """The names in the package that begin with `start`, sorted."""
    with tarfile.open(path) as archive:
        names = [member.name.removeprefix("package/") for member in archive if member.isreg()]
    return sorted(name for name in names if name.startswith(start))
