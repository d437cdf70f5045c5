"""Every place where a stranger's bytes are read: valid files, how each is damaged, and the reader that must bear it."""

from __future__ import annotations

import collections
import contextlib
import functools
import gzip
import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

import mutate
import numpy as np
from PIL import Image

GOLDEN = Path(__file__).parent.parent / "golden"
MUTATION = Callable[[Random, bytes], bytes]


class Reader(NamedTuple):
    """
    Attributes:
        files: name -> (valid bytes, how they are damaged; None: they stay).
        read: called with the folder of the files; may raise what `refusals` tells, and nothing else.
    """

    files: dict[str, tuple[bytes, MUTATION | None]]
    read: Callable[[Path], object]


def refusals() -> tuple[type[BaseException], ...]:
    from dalle_mini.errors import UserError
    from dalle_mini.imaging.problems import BadImage
    from dalle_mini.runtime.parsing import ParseError

    return UserError, BadImage, ParseError


def _made(write: Callable[[Path], object], *names: str) -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        return [(Path(folder) / name).read_bytes() for name in names]


def _picture(size: int = 24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(size).integers(0, 255, (size, size, 3), np.uint8))


def _encoded(kind: str, image: Image.Image | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    (image or _picture()).save(buffer, kind, **options)
    return buffer.getvalue()


# Weights, configs, tokenizers


def _network(part: str, golden: str, **more: MUTATION) -> Reader:
    def read(folder: Path) -> None:
        from dalle_mini.conversion.convert import NETWORKS

        NETWORKS[part].open_pretrained(folder)

    folder = GOLDEN / golden
    files = {path.name: (path.read_bytes(), more.get(path.suffix[1:])) for path in sorted(folder.iterdir())}
    return Reader({name: content for name, content in files.items() if not name.startswith(("golden", "grads"))}, read)


def dalle_config() -> Reader:
    return _network("dalle", "dallebart/a_normformer_glu_scan", json=mutate.json_text)


def vqgan_config() -> Reader:
    return _network("vqgan", "vqgan/tiny_f4_64", json=mutate.json_text)


def clip_config() -> Reader:
    return _network("clip", "clip", json=mutate.json_text)


def msgpack() -> Reader:
    return _network("vqgan", "vqgan/tiny_f4_64", msgpack=mutate.octets)


def shards() -> Reader:
    return _network("dalle", "dallebart/f_sharded_of_e", json=mutate.json_text)


def safetensors() -> Reader:
    from dalle_mini.weights.folder import load_config, load_tensors, save_tensors

    folder = GOLDEN / "vqgan/tiny_f4_64"
    data, config = _made(
        lambda out: save_tensors(out, load_config(folder), load_tensors(folder)), "model.safetensors", "config.json"
    )
    files = {"config.json": (config, None), "model.safetensors": (data, mutate.safetensors)}
    return Reader(files, _network("vqgan", "vqgan/tiny_f4_64").read)


def _torch(legacy: bool, mutation: MUTATION) -> Reader:
    import torch_files

    def read(folder: Path) -> None:
        from dalle_mini.weights.folder import load_tensors

        for tensor in load_tensors(folder).values():
            tensor.read()

    content = {
        "state_dict": {"a": np.ones((2, 3), np.float32), "b.c": np.arange(4)},
        "epoch": 3,
        "hyper": {"name": "adam"},
    }
    (data,) = _made(lambda out: torch_files.save(out / "x", content, legacy=legacy), "x")
    return Reader({"config.json": (b"{}", None), "pytorch_model.bin": (data, mutation)}, read)


def torch_zip() -> Reader:
    return _torch(False, mutate.torch_zip)


def torch_legacy() -> Reader:
    return _torch(True, mutate.pickled)


TAMING = """model:
  base_learning_rate: 4.5e-06
  target: taming.models.vqgan.VQModel
  params:
    embed_dim: 256
    n_embed: 1024
    ddconfig: {double_z: false, z_channels: 256, resolution: 256, in_channels: 3, out_ch: 3, ch: 128,
      ch_mult: [1, 1, 2, 2, 4], num_res_blocks: 2, attn_resolutions: [16], dropout: 0.0}
"""


def taming_yaml() -> Reader:
    def read(folder: Path) -> None:
        from dalle_mini.models.config import VQGANConfig
        from dalle_mini.weights.folder import load_config

        VQGANConfig.from_dict(load_config(folder))

    return Reader({"x.yaml": (TAMING.encode(), mutate.yaml_text), "x.ckpt": (b"PK\3\4", None)}, read)


def _tokenizer(part: str, names: tuple[str, ...], **mutations: MUTATION) -> Reader:
    def read(folder: Path) -> None:
        from dalle_mini.text import CaptionTokenizer

        tokenizer = CaptionTokenizer.from_pretrained(folder)
        tokenizer.check_vocab_size(60_000)
        tokenizer.digest  # noqa: B018 as training asks for it
        ids, _ = tokenizer(["a red apple " + "a" * 40 + "!", "", "é 🐌"], 32)
        assert 0 <= ids.min() <= ids.max() < 60_000

    files = {name: ((GOLDEN / part / name).read_bytes(), mutations.get(Path(name).suffix[1:])) for name in names}
    return Reader(files, read)


def tokenizer_json() -> Reader:
    return _tokenizer("tokenizer", ("tokenizer.json",), json=mutate.json_text)


def tokenizer_parts() -> Reader:
    names = ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")
    return _tokenizer("clip", names, json=mutate.json_text, txt=mutate.text)


def preprocessor() -> Reader:
    def read(folder: Path) -> None:
        from dalle_mini.generation.ranking import read_preprocessing
        from dalle_mini.imaging.clip_pixels import clip_pixels

        clip_pixels([_picture()], read_preprocessing(folder, 32))

    data = (GOLDEN / "clip/preprocessor_config.json").read_bytes()
    return Reader({"preprocessor_config.json": (data, mutate.json_text)}, read)


def training_yaml() -> Reader:
    def read(folder: Path) -> None:
        from dalle_mini.training.tasks import load_run

        load_run(folder / "c.yaml", ["loop.steps=10"])

    from dalle_mini.training.config import recipes

    config = recipes.find("finetune-emoji")
    return Reader({"c.yaml": (config.read_bytes(), mutate.yaml_text)}, read)


def override() -> Reader:
    def read(folder: Path) -> None:
        from dalle_mini.training.tasks import load_run

        text = (folder / "override").read_text("utf-8", "replace")
        load_run("finetune-emoji", [text])

    return Reader({"override": (b'data.train=["a", "b"]', mutate.text)}, read)


# Pictures and their piles


def _pictures(name: str, data: bytes, mutation: MUTATION) -> Reader:
    def read(folder: Path) -> None:
        from dalle_mini.imaging.decoding import decode_scaled, load_image
        from dalle_mini.imaging.problems import BadImage

        with contextlib.suppress(BadImage):
            assert decode_scaled((folder / name).read_bytes(), 64)[0].mode == "RGB"
        load_image(folder / name)

    return Reader({name: (data, mutation)}, read)


def picture_png() -> Reader:
    return _pictures("a.png", _encoded("PNG", _picture().convert("RGBA")), mutate.png)


def picture_jpeg() -> Reader:
    return _pictures("a.jpg", _encoded("JPEG", progressive=True, exif=Image.Exif()), mutate.jpeg)


def picture_gif() -> Reader:
    frames = [_picture(24).quantize(8) for _ in range(3)]
    return _pictures("a.gif", _encoded("GIF", frames[0], save_all=True, append_images=frames[1:]), mutate.octets)


def picture_webp() -> Reader:
    return _pictures("a.webp", _encoded("WEBP"), mutate.octets)


def picture_tiff() -> Reader:
    return _pictures("a.tif", _encoded("TIFF", compression="tiff_lzw"), mutate.octets)


def picture_float_tiff() -> Reader:
    gray = Image.fromarray(np.linspace(-3, 1e6, 400, dtype=np.float32).reshape(20, 20))
    return _pictures("a.tif", _encoded("TIFF", gray), mutate.octets)


def picture_bmp() -> Reader:
    return _pictures("a.bmp", _encoded("BMP"), mutate.octets)


def picture_ppm() -> Reader:
    return _pictures("a.ppm", _encoded("PPM"), mutate.octets)


def _source(files: dict[str, tuple[bytes, MUTATION | None]], **options) -> Reader:
    def read(folder: Path) -> None:
        from dalle_mini.data.sources import open_source
        from dalle_mini.data.sources.captions import clean

        for part in open_source(str(folder), **options).parts():
            for example in part.examples():
                example.key.encode()
                for caption in example.captions:
                    clean(caption).encode()

    return Reader(files, read)


def folder() -> Reader:
    told = json.dumps({"caption": "a red apple", "width": 3}).encode()
    files = {"a.jpg": (_encoded("JPEG"), None), "a.json": (told, mutate.json_text)}
    return _source(files | {"b.png": (_encoded("PNG"), mutate.octets), "b.txt": (b"a snail\nanother", mutate.text)})


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as file:
        for number in range(3):
            members = {"jpg": _encoded("JPEG"), "txt": b"a red apple", "json": b'{"a": 1}'}
            for suffix, data in members.items():
                member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def webdataset() -> Reader:
    return _source({"a.tar": (_tar(), mutate.tar)})


def webdataset_gz() -> Reader:
    return _source({"a.tar.gz": (gzip.compress(_tar(), 1), mutate.tar_gz)})


def _table() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    columns = {"image": [_encoded("PNG", _picture(8))] * 6, "caption": [f"a red apple {i}" for i in range(6)]}
    pq.write_table(pa.table(columns | {"width": list(range(6)), "key": [str(i) for i in range(6)]}), buffer)
    return buffer.getvalue()


def parquet() -> Reader:
    return _source({"a.parquet": (_table(), mutate.parquet)})


def metadata_csv() -> Reader:
    rows = b"file_name,caption,width\n" + b'a.jpg,"a red, apple",3\na.jpg,a snail,\n' * 3
    return _source({"metadata.csv": (rows, mutate.text), "a.jpg": (_encoded("JPEG"), None)})


def metadata_jsonl() -> Reader:
    rows = json.dumps({"file_name": "a.jpg", "text": "a red apple", "size": [3, 4]}).encode() + b"\n"
    return _source({"metadata.jsonl": (rows * 3, mutate.json_lines), "a.jpg": (_encoded("JPEG"), None)})


# Prompts, reports, token folders


def _prompts(name: str, data: bytes, mutation: MUTATION) -> Reader:
    def read(folder: Path) -> None:
        from dalle_mini.results.prompts import read_prompts

        read_prompts(folder / name)

    return Reader({name: (data, mutation)}, read)


def prompts_txt() -> Reader:
    return _prompts("p.txt", "a red apple\nein Bücherregal\n".encode(), mutate.text)


def prompts_csv() -> Reader:
    return _prompts("p.csv", b'prompt,seed,id\n"a red, apple",3,a\na snail,,b\n', mutate.text)


def prompts_jsonl() -> Reader:
    row = json.dumps({"prompt": "a red apple", "seed": 3, "guidance": 2.5, "top_k": 5}).encode() + b"\n"
    return _prompts("p.jsonl", row * 3, mutate.json_lines)


def prompts_parquet() -> Reader:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table({"prompt": ["a red apple", "a snail"], "seed": [1, 2], "id": ["a", "b"]}), buffer)
    return _prompts("p.parquet", buffer.getvalue(), mutate.parquet)


def results() -> Reader:
    def read(folder: Path) -> None:
        from dalle_mini.results.replay import read_entry

        entry = read_entry(folder / "results.json", 1)
        entry.compare(_picture())

    model = {"sha256": "0" * 64, "folder": "x"}
    report = {
        "prompt": "a red apple",
        "seed": 1,
        "settings": {"candidates": 1, "keep": 1, "guidance": 1.0, "temperature": 1.0, "top_k": 50, "top_p": None},
        "canvas": {"tokens": "1 2 3", "vary": 0.5},
        "dtype": "float32",
        "models": dict.fromkeys(("dalle", "vqgan", "clip"), model),
        "pictures": [{"file": "01.png", "score": 20.0, "candidate": 0}],
    }
    files = {"results.json": (json.dumps(report).encode(), mutate.json_text)}
    return Reader(files | {"01.png": (_encoded("PNG"), mutate.png)}, read)


def _token_folder(**mutations: MUTATION) -> Reader:
    from token_folders import write_tokens

    def read(folder: Path) -> None:
        from dalle_mini.reports.data_page import page
        from dalle_mini.reports.survey import survey

        found = survey(folder, rows=3, seed=0, progress=lambda done, total: None)
        assert "<script" not in page("tokens", found, collections.defaultdict(str))

    names = ("manifest.json", "train-00000.parquet")
    manifest, shard = _made(lambda out: write_tokens(out, 5), *names)
    files = {"manifest.json": (manifest, mutations.get("manifest")), names[1]: (shard, mutations.get("shard"))}
    return Reader(files, read)


def manifest() -> Reader:
    return _token_folder(manifest=mutate.json_text)


def token_shard() -> Reader:
    return _token_folder(shard=mutate.parquet)


def token_dataset() -> Reader:
    found = _token_folder(manifest=mutate.json_text, shard=mutate.parquet)

    def read(folder: Path) -> None:
        from dalle_mini.data.tokens.dataset import TokenDataset

        TokenDataset(folder)

    return Reader(found.files, read)


def run_log() -> Reader:
    def read(folder: Path) -> None:
        from dalle_mini.reports.run_page import write_report

        write_report(folder, {"loop": {"steps": 3}}, 3, "seq2seq")
        assert "<script" not in (folder / "report.html").read_text("utf-8")

    records = [{"step": n, "time": 1.0 * n, "train/loss": 3.0 / n, "eval/loss": None, "note": "x"} for n in (1, 2, 3)]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    return Reader({"log.jsonl": (lines.encode(), mutate.json_lines)}, read)


def run_config() -> Reader:
    def read(folder: Path) -> None:
        from dalle_mini.training.tasks import recorded_run

        recorded_run(folder, [])

    config = {
        "network": "seq2seq",
        "loop": {"steps": 3},
        "data": {"train": ["tokens"]},
        "training": {"dtype": "float32"},
    }
    return Reader({"config.json": (json.dumps(config).encode(), mutate.json_text)}, read)


def caption() -> Reader:
    def read(folder: Path) -> None:
        text = (folder / "caption").read_text("utf-8", "replace")
        normalizer, tokenizer = _text_front()
        tokenizer([normalizer(text), text], 64)

    words = "a Café &amp; #redapple <b>with</b> 1,000 emoji 🐌 http://x.y [1] U.S.A. <person>, <person> 'quoted'"
    return Reader({"caption": (words.encode(), mutate.text)}, read)


@functools.cache
def _text_front():
    from dalle_mini.text import CaptionNormalizer, CaptionTokenizer

    words = GOLDEN / "text_normalizer/enwiki-words-frequency.txt"
    return CaptionNormalizer(words), CaptionTokenizer.from_pretrained(GOLDEN / "tokenizer")


READERS: dict[str, Callable[[], Reader]] = {
    maker.__name__: maker
    for maker in (
        dalle_config, vqgan_config, clip_config, msgpack, shards, safetensors, torch_zip, torch_legacy, taming_yaml,
        tokenizer_json, tokenizer_parts, preprocessor, training_yaml, override,
        picture_png, picture_jpeg, picture_gif, picture_webp, picture_tiff, picture_float_tiff, picture_bmp,
        picture_ppm,
        folder, webdataset, webdataset_gz, parquet, metadata_csv, metadata_jsonl,
        prompts_txt, prompts_csv, prompts_jsonl, prompts_parquet, results, manifest, token_shard, token_dataset,
        run_log, run_config, caption,
    )
}  # fmt: skip


def damaged(reader: Reader, seed: str, into: Path) -> None:
    """Write the files of case `seed`: one of those that may be damaged is, the others are as they should be."""
    random = Random(seed)
    chosen = random.choice(sorted(name for name, (_, mutation) in reader.files.items() if mutation))
    for name, (data, mutation) in reader.files.items():
        (into / name).write_bytes(_damage(mutation, random, data) if name == chosen else data)


def _damage(mutation: MUTATION, random: Random, data: bytes) -> bytes:
    try:
        return mutation(random, data)
    except Exception:  # the writers of some formats refuse what is odd; bytes they cannot refuse
        return mutate.octets(random, data)


def clear(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
