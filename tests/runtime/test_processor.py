from dalle_mini.runtime.processor import kind, processor

LINES = """processor : 0
model name\t: A Processor @ 2 GHz
flags\t\t: sse2 avx2 avx512f{}

processor : 1
model name\t: A Processor @ 2 GHz
"""


def test_the_kind_is_that_of_the_best_instructions(tmp_path):
    for extra, name in (("", "AVX-512"), (" avx512_bf16", "AVX-512 BF16"), (" amx_bf16 avx512_bf16", "AMX")):
        (file := tmp_path / f"{name}.txt").write_text(LINES.format(extra))
        assert kind(file) == name
        assert processor(file).startswith("A Processor @ 2 GHz (") and processor(file).endswith(f"; {name})")


def test_a_system_without_the_file_has_a_kind(tmp_path):
    assert kind(tmp_path / "none") and "cores" in processor(tmp_path / "none")
