"""Folders of encoded pictures: Parquet shards, and a manifest that says what they are.

    OUT/manifest.json
    OUT/train-00000.parquet ...  OUT/validation-00000.parquet ...

`datasets.load_dataset(OUT)` reads them too. A row is one crop of one picture:

| column | type | |
|---|---|---|
| key | string | the picture's name within its source; crops of one picture share it |
| crop | int16 | number of the crop, from 0 |
| caption | string | cleaned, not normalised |
| other_captions | list of string | further captions of the picture; may be empty |
| tokens | fixed-size list of uint16 (int32 where the codebook has more than 65,536 codes) | row-major |
| width, height | int32 | of the picture before it was resized, pixels |
| clip_score | float32 | CLIP's cosine of picture and caption, null where it was not asked for |
"""

from __future__ import annotations

import pyarrow as pa

MANIFEST = "manifest.json"
SPLITS = ("train", "validation")


def schema(image_length: int, codebook_size: int) -> pa.Schema:
    """The columns of a shard whose pictures have `image_length` tokens out of `codebook_size`."""
    token = pa.uint16() if codebook_size <= 2**16 else pa.int32()
    return pa.schema(
        [
            ("key", pa.string()),
            ("crop", pa.int16()),
            ("caption", pa.string()),
            ("other_captions", pa.list_(pa.string())),
            ("tokens", pa.list_(token, image_length)),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("clip_score", pa.float32()),
        ]
    )
