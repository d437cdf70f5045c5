"""Datasets of captioned images, of every usual kind, read as streams.

`open_source` of `recognise.py` finds out which kind a dataset is:

| what is there | kind |
|---|---|
| a folder that `save_to_disk` wrote | `huggingface.py` |
| a `.tar`, `.tar.gz` or `.tgz`, a folder with some, or a pattern of them | `webdataset.py` |
| a folder with `metadata.csv`, `.tsv` or `.jsonl` | `metadata.py` |
| a `.parquet`, a folder with some, or a pattern of them | `parquet.py` |
| any other folder of pictures | `folder.py` |
| `hf://owner/name`, or `owner/name` where no such folder is | `huggingface.py` |

Each makes parts that can be pickled; `files.py` reads files of any file system, `rows.py` rows of any table.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dalle_mini.data.sources.recognise import open_source

__all__ = ["open_source"]


def __getattr__(name: str):
    # The readers import NumPy, and the command line, which reads `reasons.py` and `captions.py`, must not wait for it.
    if name != "open_source":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dalle_mini.data.sources.recognise import open_source

    return open_source
