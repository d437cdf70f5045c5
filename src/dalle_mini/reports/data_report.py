"""An encoded folder as one page to look at: `dalle-mini data report`."""

import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dalle_mini.data.tokens.shards import Manifest, TokensOf
from dalle_mini.errors import UserError
from dalle_mini.reports.data_page import page
from dalle_mini.reports.survey import Row, Survey, survey
from dalle_mini.runtime.files import write_whole
from dalle_mini.runtime.paths import no_folder

QUALITY = 90  # of JPEG, its colours at full size, so that visible artefacts are the VQGAN's


def write_report(
    folder: str | Path,
    output: str | Path | None = None,
    *,
    vqgan: str | Path | None = None,
    rows: int = 24,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    **hub,
) -> Path:
    """Write the page about an encoded folder.

    Args:
        folder: what `dalle-mini encode` wrote.
        output: the page's file; `report.html` in the folder by default.
        vqgan: the folder or repository of the tokens' VQGAN; by default, the one that the manifest names.
        rows: number of rows to draw evenly and show.
        seed: of the sample and of the rows.
        progress: called with (stage, done, total).
        hub: `revision`, `token`, `cache_dir`, `local_files_only` for the VQGAN, as in `weights.hub.resolve`.

    Returns:
        the page's path.

    Raises:
        UserError: the folder is not encoded or is damaged, the VQGAN is not found or is another one, or the page cannot
            be written.
    """
    from dalle_mini.runtime.files import remove_leftovers

    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(no_folder(folder))
    if rows < 1:
        raise UserError(f"rows {rows}: at least 1")
    output = folder / "report.html" if output is None else Path(output)
    if output.is_dir():
        raise UserError(f"{output} is a folder: name a file, such as {output / 'report.html'}")
    of = Manifest.read(folder).vqgan
    decoder = _decoder(folder, of, vqgan, hub)  # what is missing shows before the work
    found = survey(folder, rows=rows, seed=seed, progress=lambda done, total: progress("reading", done, total))
    pictures = _pictures(found, decoder, lambda done, total: progress("pictures", done, total))
    remove_leftovers(output.parent)
    write_whole(output, page(folder.resolve().name, found, pictures))
    return output


def _decoder(folder: Path, of: TokensOf, named: str | Path | None, hub: dict):
    """The VQGAN that encoded the folder, ready to draw."""
    import jax

    from dalle_mini.generation.pixels import PixelDecoder
    from dalle_mini.models.fingerprint import fingerprint
    from dalle_mini.models.image_tokenizer import load_image_tokenizer
    from dalle_mini.weights.bundle import find_part

    try:
        vqgan = load_image_tokenizer(find_part("vqgan", named or of.source, **hub))
    except UserError as error:
        if named is not None:
            raise
        raise UserError(f"{folder}: the VQGAN that encoded it is not found ({error}): name it: --vqgan") from None
    if (other := fingerprint(vqgan)) != of.identity:
        raise UserError(
            f"{named or of.source}: another VQGAN ({other}) than the one that encoded {folder} ({of.identity}, "
            f"{of.source}): name that one: --vqgan"
        )
    return PixelDecoder(vqgan, jax.local_devices()[:1])


def _pictures(found: Survey, decoder, progress: Callable[[int, int], None]) -> dict[tuple[str, str, int], str]:
    """JPEG data URIs of all rows that are shown, by (split, key, crop)."""
    shown = {name_of(row): row for rows in (found.random, *found.worst.values()) for row in rows}
    tokens = np.stack([row.tokens for row in shown.values()]).astype(np.int32)
    codes = decoder.tokenizer.codebook_size
    if not 0 <= tokens.min() <= tokens.max() < codes:
        raise UserError(
            f"tokens from {tokens.min()} to {tokens.max()} of a codebook of {codes}: the shards are damaged"
        )
    if tokens.shape[1] != decoder.tokenizer.grid**2:
        raise UserError(f"{tokens.shape[1]} tokens per image, and the VQGAN's have {decoder.tokenizer.grid**2}")
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(done, len(shown))

    images = decoder(tokens, count)
    return {name: _data_uri(image) for name, image in zip(shown, images, strict=True)}


def name_of(row: Row) -> tuple[str, str, int]:
    return row.split, row.key, row.crop


def _data_uri(image: np.ndarray) -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
