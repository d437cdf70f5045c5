import hashlib
from pathlib import Path

import pytest

from dalle_mini.emoji.everyday import CaptionReader, read_everyday_prompts
from dalle_mini.emoji.things import things
from dalle_mini.emoji.words import Lexicon, read_annotations
from dalle_mini.errors import UserError

PROMPTS = Path(__file__).parent.parent.parent / "benchmarks" / "everyday_prompts.txt"
CLDR = Path(__file__).parent.parent / "golden" / "cldr"
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


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        ("a red apple on a blue background", [("🍎", 1, 1)]),
        ("a snail to the left of a red car", [("🐌", 1, 1), ("🚗", 1, 1)]),
        ("two cats under a rainbow", [("🐈🐱", 2, 2), ("🌈", 1, 1)]),
        ("Three RED apples, please!", [("🍎", 3, 3)]),
        ("a small 3d fox and 4 big bananas", [("🦊", 1, 1), ("🍌", 4, 4)]),
        ("cats", [("🐈🐱", 2, 9)]),
        ("some mice with a gold crown on a sea gradient", [("🐁", 2, 9), ("👑", 1, 1)]),
        ("a sunflower in the top left corner", [("🌻", 1, 1)]),
        ("fries", [("🍟", 1, 1)]),
        ("a blorfing asdfghjkl", []),
    ],
)
def test_a_caption_asks_for_things(caption, wanted):
    read = CaptionReader(Lexicon(read_annotations(CLDR)))
    found = [("".join(sorted(one.things)), one.least, one.most) for one in read(caption).wanted]
    assert found == [("".join(sorted(things)), least, most) for things, least, most in wanted]


def test_captions_ask_for_what_the_everyday_prompts_say():
    """All but 3, which are written with emoji or with a slip of the pen."""
    read = CaptionReader(Lexicon(read_annotations(CLDR)))

    def is_same(found, said):
        numbers = (found.least, found.most) == (said.least, said.most)
        return numbers and bool({*found.things} & {*said.things})

    right = 0
    for prompt in read_everyday_prompts(PROMPTS):
        found = read(prompt.text).wanted
        right += len(found) == len(prompt.wanted) and all(map(is_same, found, prompt.wanted))
    assert right == 197
