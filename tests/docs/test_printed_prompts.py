"""tools/docs/printed_prompts.py: the prompts that texts print, and that each asks for something that can be judged."""

from pathlib import Path

import printed_prompts
from dalle_mini.emoji.everyday import CaptionReader
from dalle_mini.emoji.words import Lexicon, read_annotations
from printed_prompts import GIVEN_IMAGE, OTHER_MODEL, Printed
from shell_lines import Line

CLDR = Path(__file__).parents[1] / "golden" / "cldr"
PRINTED = printed_prompts.printed_prompts()


def test_all_texts_are_read():
    pages = {one.place.split(":")[0].split(",")[0] for one in PRINTED if one.left_out is None}
    for page in ("README.md", "docs/index.md", "docs/serve.md", "docs/shipped-model.md"):
        assert page in pages
    for path in (printed_prompts.NOTEBOOK, printed_prompts.DEMO, printed_prompts.EXAMPLES):
        assert str(path.relative_to(printed_prompts.ROOT)) in pages
    found = {(one.place, one.prompt) for one in PRINTED}
    assert ("docs/serve.md, script 1", "a red apple on a blue background") in found
    assert ("tools/inference/pipeline.ipynb", "a snail on a yellow background") in found


def test_each_prompt_asks_for_something():
    read = CaptionReader(Lexicon(read_annotations(CLDR)))
    vague = [f"{one.place}: {one.prompt}" for one in PRINTED if one.left_out is None and not read(one.prompt).wanted]
    assert not vague, "the shipped model knows no thing in it: print another prompt"


def test_prompts_of_shell_lines():
    def of(text):
        return [(one.prompt, one.left_out) for one in printed_prompts.of_line(Line("page", 1, text))]

    assert of('dalle-mini generate "a fox" "two cats" --keep 4  # "no prompt"') == [("a fox", None), ("two cats", None)]
    assert of('dalle-mini generate "a fox" --model owner/name') == [("a fox", OTHER_MODEL)]
    assert of('dalle-mini generate "a fox" --model shipped --clip runs/clip/final') == [("a fox", OTHER_MODEL)]
    assert of('dalle-mini generate "a fox" --picture photo.jpg --vary 0.3') == [("a fox", GIVEN_IMAGE)]
    assert of("dalle-mini generate --prompts captions.csv --output drawn") == []
    assert of("dalle-mini generate --help") == of("taskset -c 0-3 dalle-mini generate ...") == []
    assert of('curl URL --data \'{"prompt": "a fox", "n": 2}\' > answer.json') == [("a fox", None)]


def test_prompts_of_programs_and_of_the_demo():
    def of(code):
        return [(one.prompt, one.left_out) for one in printed_prompts.of_python(code, "page")]

    code = 'caption = "a fox"\nboth = [caption, "a cat"]\npipe.generate(both, seed=1)\npipe.stream([caption])\n'
    assert of(code) == [("a fox", None), ("a cat", None), ("a fox", None)]
    assert of('client.images.generate(prompt="a fox", n=2)') == [("a fox", None)]
    assert of('pipe.generate(["a fox"], canvas=pipe.canvas("photo.jpg"))') == [("a fox", GIVEN_IMAGE)]
    assert of('pipe = DalleMini.from_pretrained("mini")\npipe.generate(["a fox"])') == [("a fox", OTHER_MODEL)]
    assert of('pipe.generate(prompts)\nprompts = prompts + ["a fox"]') == []
    demo = printed_prompts.of_demo('A ?= 1\nDEMO_PROMPTS ?= \\\n  "a fox" "two cats" \\\n  "a car"\nB ?= 2\n')
    assert [*demo] == [Printed("Makefile", prompt) for prompt in ("a fox", "two cats", "a car")]
