import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dalle_mini.errors import UserError
from dalle_mini.text import CaptionNormalizer, CaptionTokenizer

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def bart() -> CaptionTokenizer:
    return CaptionTokenizer.from_pretrained(GOLDEN / "tokenizer")


@pytest.fixture(scope="module")
def clip() -> CaptionTokenizer:
    return CaptionTokenizer.from_pretrained(GOLDEN / "clip")


def load(folder: str) -> tuple[dict | list, dict[str, np.ndarray]]:
    golden = json.loads((GOLDEN / folder / "golden.json").read_text(encoding="utf-8"))
    return golden, np.load(GOLDEN / folder / "golden.npz")


@pytest.mark.parametrize(("max_length", "suffix"), [(64, ""), (16, "_max16")])
def test_bart_encodings(bart, max_length, suffix):
    golden, arrays = load("tokenizer")
    captions = [case["text"] for case in golden]
    input_ids, attention_mask = bart(captions, max_length=max_length)
    assert input_ids.dtype == attention_mask.dtype == np.int32
    np.testing.assert_array_equal(input_ids, arrays["input_ids" + suffix])
    np.testing.assert_array_equal(attention_mask, arrays["attention_mask" + suffix])
    assert [bart.count(caption) for caption in captions] == [len(case["ids"]) for case in golden]


def test_processor_encodings(bart):
    golden, arrays = load("processor")
    normalize = CaptionNormalizer(GOLDEN / "text_normalizer" / "enwiki-words-frequency.txt")
    captions = [normalize(prompt) for prompt in golden["prompts"]]
    assert captions == golden["normalized"]
    input_ids, attention_mask = bart(captions)
    np.testing.assert_array_equal(input_ids, arrays["input_ids"])
    np.testing.assert_array_equal(attention_mask, arrays["attention_mask"])
    input_ids, attention_mask = bart([""] * len(captions))
    np.testing.assert_array_equal(input_ids, arrays["input_ids_uncond"])
    np.testing.assert_array_equal(attention_mask, arrays["attention_mask_uncond"])


def test_clip_encodings(clip):
    golden, arrays = load("clip")
    input_ids, attention_mask = clip(golden["texts"], max_length=20)
    np.testing.assert_array_equal(input_ids, arrays["input_ids"])
    np.testing.assert_array_equal(attention_mask, arrays["attention_mask"])
    assert [clip.count(text) for text in golden["texts"]] == [len(ids) for ids in golden["token_ids"]]
    assert (clip.pad_token, clip.pad_id, clip.vocab_size) == ("<|endoftext|>", 573, 574)


@pytest.fixture
def in_parts(tmp_path) -> Path:
    """CLIP's tokenizer as it was published before tokenizer.json."""
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(GOLDEN / "clip" / name, tmp_path)
    return tmp_path


CLIP_CAPTIONS = [
    "", " ", "A  Photo\tof\n a CAT", "it's we'll I'D o'clock ''s", "1234 3.14 x86_64 ²³ Ⅷ", "!!! -- (...) $5 #tag @me",
    "Ünïcödé cafe\u0301 ÅNGSTRÖM ẞß ĲŋǄ", "日本語 العربية हिन्दी 한국어", "😀👨\u200d👩\u200d👧 🇩🇪 ❤️", "ǅ İstanbul ΣΑΣ",
    "a\u00a0b\u2003c\u200bd\ufeffe", "\x00\x07\x7f", "snake_case-kebab", "&amp; <b>html</b>", "“a” ‘b’ — …", "a" * 300,
    "<|startoftext|> a <|endoftext|> b", "<|STARTOFTEXT|><|ENDOFTEXT|>", "<|endoftext|", "\ud83c\udf55",
]  # fmt: skip


def test_clip_from_vocabulary_and_merges(clip, in_parts):
    captions = CLIP_CAPTIONS + load("clip")[0]["texts"]
    tokenizer = CaptionTokenizer.from_pretrained(in_parts)
    assert (tokenizer.pad_id, tokenizer.end_id, tokenizer.vocab_size) == (573, 573, 574)
    for caption, ours, wanted in zip(captions, tokenizer(captions, 400)[0], clip(captions, 400)[0], strict=True):
        assert ours.tolist() == wanted.tolist(), caption


@pytest.mark.slow
def test_clip_of_transformers(in_parts):
    transformers = pytest.importorskip("transformers", reason="needs the extra `oracle`")
    theirs = transformers.CLIPTokenizer.from_pretrained(in_parts)
    ours = CaptionTokenizer.from_pretrained(in_parts)
    captions = [caption for caption in CLIP_CAPTIONS if "\ud83c" not in caption] + load("clip")[0]["texts"]
    captions.remove("<|STARTOFTEXT|><|ENDOFTEXT|>")  # the files of 2021 say to lower-case the first, a new object not
    for caption in captions:
        wanted = theirs(caption, padding="max_length", max_length=40, truncation=True)
        input_ids, attention_mask = ours([caption], max_length=40)
        assert input_ids[0].tolist() == wanted["input_ids"], caption
        assert attention_mask[0].tolist() == wanted["attention_mask"], caption


def test_parts_that_make_no_tokenizer_of_clip(in_parts):
    vocab = in_parts / "vocab.json"
    (in_parts / "merges.txt").write_text("one two three\n")
    with pytest.raises(UserError, match=rf"^{vocab}: not a readable tokenizer"):
        CaptionTokenizer.from_pretrained(in_parts)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(GOLDEN / "tokenizer" / name, in_parts)
    with pytest.raises(UserError, match=r"vocab\.json.*no <\|endoftext\|>, so it is not CLIP's; .* a tokenizer\.json"):
        CaptionTokenizer.from_pretrained(in_parts)
    vocab.unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json: no such file"):
        CaptionTokenizer.from_pretrained(in_parts)


@pytest.mark.parametrize(("folder", "pad_id"), [("tokenizer", 1), ("clip", 573)])
def test_pad_token_without_the_settings_files(tmp_path, folder, pad_id):
    shutil.copy(GOLDEN / folder / "tokenizer.json", tmp_path)
    assert CaptionTokenizer.from_pretrained(tmp_path).pad_id == pad_id


def test_padding_and_truncation_stored_in_the_file_do_not_count(tmp_path):
    content = json.loads((GOLDEN / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": None,
        "pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>",
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    tokenizer = CaptionTokenizer.from_pretrained(tmp_path)
    assert tokenizer.count("sunset over a lake") == 10
    assert tokenizer([""], max_length=3)[0].tolist() == [[0, 2, 1]]


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "\0",
        "\ud800",
        "\udfff\ud83c",
        "😀" * 300,
        "日本語 العربية हिन्दी",
        "a" * 10_000,
        "\n" * 10_000,
        "word " * 2000,
    ],
)
def test_any_text_fits(bart, clip, caption):
    for tokenizer in (bart, clip):
        input_ids, attention_mask = tokenizer([caption], max_length=12)
        length = attention_mask.sum()
        assert length == min(tokenizer.count(caption), 12)
        assert input_ids[0, length - 1] == tokenizer([""], max_length=2)[0][0, 1]
        assert input_ids.max() < tokenizer.vocab_size


def test_surrogate_pair_is_one_character(bart):
    np.testing.assert_array_equal(bart(["\ud83c\udf55"])[0], bart(["\N{SLICE OF PIZZA}"])[0])


def test_no_captions_give_no_rows(bart):
    assert [array.shape for array in bart([], max_length=8)] == [(0, 8), (0, 8)]


def test_wrong_calls_are_user_errors(bart):
    with pytest.raises(UserError, match="list of captions"):
        bart("a red apple")
    with pytest.raises(UserError, match="NoneType"):
        bart(["a red apple", None])
    with pytest.raises(UserError, match="max_length=1"):
        bart(["a red apple"], max_length=1)


def test_vocabulary_that_does_not_fit_the_embedding(bart, clip):
    bart.check_vocab_size(bart.vocab_size)
    with pytest.raises(UserError, match=r"tokenizer\.json: token ids go up to 419 but .* 419 rows"):
        bart.check_vocab_size(419)
    with pytest.raises(UserError, match="573"):
        clip.check_vocab_size(573)


def test_unused_special_token_beyond_the_embedding_is_dropped(tmp_path):
    content = json.loads((GOLDEN / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    content["added_tokens"].append({**content["added_tokens"][-1], "id": 420, "content": "<extra>", "lstrip": False})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    tokenizer = CaptionTokenizer.from_pretrained(tmp_path)
    assert tokenizer(["a<extra>"], max_length=4)[0].tolist() == [[0, 69, 420, 2]]
    tokenizer.check_vocab_size(420)
    assert tokenizer(["a<extra>"], max_length=4)[0].tolist() == [[0, 69, 2, 1]]


@pytest.mark.parametrize("folder", ["tokenizer", "clip"])
def test_save_and_read_again(tmp_path, folder):
    saved = tmp_path / "new" / "folder"
    tokenizer = CaptionTokenizer.from_pretrained(GOLDEN / folder)
    tokenizer.save(saved)
    assert sorted(path.name for path in saved.iterdir()) == [
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    captions = ["A Painting of a red fox!", "", "café 😀"]
    for ours, again in zip(tokenizer(captions), CaptionTokenizer.from_pretrained(saved)(captions), strict=True):
        np.testing.assert_array_equal(ours, again)


def test_save_where_nothing_can_be_written(tmp_path, bart):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        bart.save(tmp_path / "file")


def test_broken_folders_are_named(tmp_path):
    def error() -> str:
        with pytest.raises(UserError) as raised:
            CaptionTokenizer.from_pretrained(tmp_path)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert f"{tmp_path / 'tokenizer.json'}: no such file" in error()
    golden = (GOLDEN / "tokenizer" / "tokenizer.json").read_bytes()
    for broken in (golden[: len(golden) // 2], b"", b"[]", b"\xff\xfe"):
        (tmp_path / "tokenizer.json").write_bytes(broken)
        assert f"{tmp_path / 'tokenizer.json'}: not a readable tokenizer" in error()
    (tmp_path / "tokenizer.json").write_text(json.dumps(json.loads(golden) | {"post_processor": None}))
    assert "post_processor" in error()

    (tmp_path / "tokenizer.json").write_bytes(golden)
    settings = tmp_path / "special_tokens_map.json"
    for content, reason in (
        ("{", "JSON"),
        ("[1]", "an object with named fields"),
        ('{"pad_token": "<blank>"}', "'<blank>'"),
    ):
        settings.write_text(content)
        assert str(settings) in error()
        assert reason in error()


def test_import_is_light():
    heavy = ("transformers", "jax", "ftfy", "emoji", "tokenizers")
    code = f"import sys, dalle_mini.text; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
