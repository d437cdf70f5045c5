"""A tiny bundle of random models: the golden folders of the parts, put together as `from_pretrained` wants them."""

import gc
import importlib.metadata
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

# Most of the time goes into compiling, and workers and commands of a run compile much the same, as the next run does:
# they share it. A run that compiles all leaves 60 MB.
PROGRAMS, ENOUGH = Path(__file__).parents[1] / "build" / "tests", 2**30
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    is_first = "PYTEST_XDIST_WORKER" not in os.environ
    if is_first and PROGRAMS.is_dir() and sum(file.stat().st_size for file in PROGRAMS.iterdir()) > ENOUGH:
        shutil.rmtree(PROGRAMS, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(PROGRAMS)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# Networks are so small here that compiling them is most of the time, and more than half of that is optimisation: spared
# in this process and its children. `make test-golden` sets 0, so that the programs are those that users run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1" and importlib.metadata.version("jaxlib").startswith("0.10."):
    # A quarter of what is left. Later releases do not know the flag, and an unknown one ends the process.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false".strip()
gc.set_threshold(100_000, 20, 20)  # tracing makes many objects, and few of them in cycles
# These compare results to the last bit, which depends on it.
AS_USERS_RUN = ("test_company.py",)

# A process in the background of a script hears no Ctrl-C, nor do its children; tests of Ctrl-C want it heard.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

MANY_MAPS = 20_000
GOLDEN = Path(__file__).parent / "golden"
TESTS = Path(__file__).parent
for folder in (TESTS.parent / "tools" / "docs", TESTS / "helpers"):
    sys.path.insert(0, str(folder))  # child processes import them by name, too
# Where workers share the files out, the longest come first: the last file is one worker's alone.
LONGEST = ("training", "generation", "test_generate.py", "test_batch.py", "weights", "data")


def pytest_collection_modifyitems(items):
    def place(item) -> int:
        return next((number for number, name in enumerate(LONGEST) if name in item.path.parts), len(LONGEST))

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def emoji_font():
    """The font beside the golden values is drawn from, whether or not Debian's is installed."""
    from dalle_mini.emoji import art

    art.DEBIAN_FONT = GOLDEN / "emoji" / "NotoColorEmoji.ttf"


@pytest.fixture(scope="module", autouse=True)
def programs(request):
    """Programs are compiled as `AS_USERS_RUN` says, those of fixtures too, and do not pile up.

    Each maps memory, and Linux ends a process that has more than 65,530 maps.
    """
    import jax

    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    after = before and request.path.name not in AS_USERS_RUN
    if after != before:
        jax.clear_caches()
        jax.config.update(name, after)
    yield
    maps = Path("/proc/self/maps")
    if after != before or (maps.is_file() and maps.read_bytes().count(b"\n") > MANY_MAPS):
        jax.clear_caches()
        gc.collect()
    jax.config.update(name, before)


@pytest.fixture(scope="session")
def golden_bundle(tmp_path_factory) -> Path:
    """A bundle of 16-token, 16x16-pixel pictures; read-only, copy it to damage it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    shutil.copytree(GOLDEN / "dallebart" / "a_normformer_glu_scan", folder / "dalle")
    shutil.copytree(GOLDEN / "tokenizer", folder / "dalle", dirs_exist_ok=True)
    shutil.copy(GOLDEN / "text_normalizer" / "enwiki-words-frequency.txt", folder / "dalle" / "words.txt")
    shutil.copytree(GOLDEN / "vqgan" / "tiny_f4_64", folder / "vqgan")
    shutil.copytree(GOLDEN / "clip", folder / "clip")
    return folder


@pytest.fixture
def full_disk():
    """`with full_disk(n):` no file gets larger than n bytes: what writes more fails, as it does on a full disk."""
    import contextlib
    import resource

    @contextlib.contextmanager
    def full(room: int):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))  # Python ignores SIGXFSZ
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return full


@pytest.fixture(scope="session")
def pipe(golden_bundle):
    from dalle_mini import DalleMini

    return DalleMini.from_pretrained(golden_bundle)


@pytest.fixture
def hang_up():
    """SIGHUP as it is by itself, for this process and its children: under nohup it is ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A `HubServer`; the client in this process talks to nothing else and keeps its files in `tmp_path / "hf"`."""
    from hub_server import serving

    with serving(monkeypatch, tmp_path) as server:
        yield server
