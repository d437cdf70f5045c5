import hashlib
from pathlib import Path

import pytest

from dalle_mini.emoji.everyday import read_everyday_prompts
from dalle_mini.emoji.things import things
from dalle_mini.errors import UserError

PROMPTS = Path(__file__).parent.parent.parent / "benchmarks" / "everyday_prompts.txt"
DIGEST = "cbd8cef9efb9b65c819809ed3585ed09ead9d457ebadaf61df6fd61a4f269184"


def test_the_prompts_are_those_that_were_written_before_training():
    assert hashlib.sha256(PROMPTS.read_bytes()).hexdigest() == DIGEST
    prompts = read_everyday_prompts(PROMPTS)
    assert len({one.text for one in prompts}) == 200
    known = {one.characters.replace("\ufe0f", "") for one in things()}
    assert not {one for prompt in prompts for wanted in prompt.wanted for one in wanted.things} - known


def test_what_is_right():
    by_text = {one.text: one for one in read_everyday_prompts(PROMPTS)}
    assert by_text["a fox"].is_right("🦊")
    assert not by_text["a fox"].is_right("🦊🦊") and not by_text["a fox"].is_right("🐻")
    assert not by_text["a fox"].is_right("")
    assert by_text["3 cats"].is_right("🐈🐈🐈") and by_text["3 cats"].is_right("🐱🐱🐱")
    assert not by_text["3 cats"].is_right("🐱🐱") and not by_text["3 cats"].is_right("🐱🐱🐈")
    assert by_text["cats"].is_right("🐱🐱") and not by_text["cats"].is_right("🐱")
    assert by_text["a cat and a dog"].is_right(["🐕", "🐱"])
    assert not by_text["a cat and a dog"].is_right("🐱") and not by_text["a cat and a dog"].is_right("🐱🐕🐕")
    assert by_text["sun"].is_right(["☀\ufe0f"])
    assert by_text["an astronaut"].is_right(["🧑\u200d🚀"])


def test_a_line_that_is_no_prompt_is_named(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("# fine\na fox | 🦊\na bear\n")
    with pytest.raises(UserError, match="line 3"):
        read_everyday_prompts(path)
