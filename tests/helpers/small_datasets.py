"""Captioned images of every kind of source, a few rows each, and what is read of them."""

import io
import pickle
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import bad_dataset
from dalle_mini.data.sources import files, open_source

PICTURES = [bad_dataset.packed(bad_dataset.photo(i)) for i in range(10)]
PICTURE = PICTURES[0]


def examples(source):
    """All of a source, through parts that were pickled as they are for other processes."""
    return [example for part in source.parts() for example in pickle.loads(pickle.dumps(part)).examples()]


def outcome(path, **options):
    return [(example.key, example.problem) for example in examples(open_source(str(path), **options))]


def tar_of(names, kind=tarfile.PAX_FORMAT, content=None):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
        for name in names:
            ending = name.rpartition(".")[2]
            data = PICTURE if ending in files.IMAGE_SUFFIXES else name.encode()
            bad_dataset.put(tar, name, (content or {}).get(name, data))
    return file.getvalue()


def made(rows=10, **more):
    """A data set of the `datasets` library."""
    import datasets

    columns = {
        "image": [{"bytes": picture, "path": f"{i}.jpg"} for i, picture in enumerate(PICTURES[:rows])],
        "text": [f"caption {i}" for i in range(rows)],
        "score": [i / 10 for i in range(rows)],
    }
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "score": datasets.Value("float64")}
    )
    for name, values in more.items():
        columns[name] = values
        features[name] = datasets.Value("string")
    return datasets.Dataset.from_dict(columns, features=features)


def write(path, columns, **options):
    table = pa.table(columns)
    pq.write_table(table, path, **{"compression": "zstd", "store_schema": False} | options)
    return path


def same(value, count, kind):
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([value], kind))


def struct_of(column):
    return pa.StructArray.from_arrays([column, pa.nulls(len(column), pa.string())], ["bytes", "path"])


def list_of(column):
    return pa.ListArray.from_arrays(pa.array([0, len(column)], pa.int32()), column)
