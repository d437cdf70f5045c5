"""tools/docs/facts.py: what pages lost and won since a commit."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "tools" / "docs" / "facts.py"


def test_numbers_and_flags_that_went_and_came(tmp_path):
    def run(*words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        return subprocess.run(words, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout

    (tmp_path / "docs" / "api").mkdir(parents=True)
    (tmp_path / "README.md").write_text("It takes 1,250 steps of 0.5 s with --seed.\n")
    (tmp_path / "docs" / "a.md").write_text("0.5 s of 3 s\n")
    run("git", "init", "--quiet")
    run("git", "add", ".")
    run("git", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "-m", "pages")
    (tmp_path / "README.md").write_text("It takes 0.5 s.\n")
    (tmp_path / "docs" / "a.md").unlink()
    (tmp_path / "docs" / "api" / "b.md").write_text("--top-k 1,250\n")
    told = [line.split() for line in run(sys.executable, str(SCRIPT), "HEAD").splitlines()]
    assert told == [
        ["gone:", "2"],
        ["--seed", "README.md"],
        ["3", "docs/a.md"],
        ["new:", "1"],
        ["--top-k", "docs/api/b.md"],
    ]
