"""Every prompt that README, docs/, the model's card, the notebook, `make demo` and the server's page print.

    python tools/docs/printed_prompts.py

They are read from the texts. Left out, with the reason: a prompt for another model, --vqgan or --clip; one that redraws
a part of a given image, or is drawn from the reader's own file; and one that stands for the reader's words (TEXT).
"""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dalle_mini.runtime import console
from shell_lines import PAGES, ROOT, Line, in_blocks, in_sentences, snippets

CARD = ROOT / "src" / "dalle_mini" / "assets" / "emoji" / "README.md"
NOTEBOOK = ROOT / "tools" / "inference" / "pipeline.ipynb"
DEMO = ROOT / "Makefile"
EXAMPLES = ROOT / "src" / "dalle_mini" / "serving" / "page" / "examples.js"
DRAW = ("generate", "generate_each", "stream")  # methods of `DalleMini`, and of OpenAI's client
OTHER_MODEL, GIVEN_IMAGE = "for another model", "redraws a part of a given image"


@dataclass(frozen=True)
class Printed:
    """A prompt, where it stands, and why no picture of the shipped model answers it, or None."""

    place: str
    prompt: str
    left_out: str | None = None


def printed_prompts() -> list[Printed]:
    """All of them, in the order of the texts."""
    found: list[Printed] = []
    for page in [*PAGES, CARD]:
        for line in (*in_blocks(page), *in_sentences(page)):
            found += of_line(line)
        for number, code in snippets(page):
            found += of_python(code, f"{_name(page)}, snippet {number}")
        for number, code in snippets(page, "js"):
            found += _of_text(code, r'\bprompt: "([^"]+)"', f"{_name(page)}, script {number}")
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    found += of_python(code, _name(NOTEBOOK))
    found += of_demo(DEMO.read_text("utf-8"))
    table = re.search(r"EXAMPLES = \{(.*?)\n\}", EXAMPLES.read_text("utf-8"), re.S)
    found += _of_text(table[1] if table else "", r'^\s*\w+: "([^"]+)"', _name(EXAMPLES))
    return found


def of_line(line: Line) -> Iterator[Printed]:
    """The prompts of a shell line: of `dalle-mini generate`, and in what curl sends."""
    from dalle_mini.cli import build_parser
    from dalle_mini.errors import UserError

    for words in line.commands:
        if words[:2] == ["dalle-mini", "generate"] and "--help" not in words:
            try:
                args = build_parser().parse_args(words[1:])
            except (UserError, SystemExit):  # a pattern: `dalle-mini generate ...`
                continue
            others = {args.model, args.vqgan, args.clip} - {None, "shipped"}
            why = OTHER_MODEL if others else GIVEN_IMAGE if args.picture else None
            yield from (Printed(line.place, prompt, why) for prompt in args.prompt if prompt != "...")
        elif words[0] == "curl":
            for word in words:
                if word.startswith("{"):
                    yield from (Printed(line.place, text) for text in [json.loads(word).get("prompt")] if text)


def of_python(code: str, place: str) -> Iterator[Printed]:
    """The prompts that a program draws."""
    tree = ast.parse(code)
    texts = {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    other = any(call.func.attr == "from_pretrained" and call.args for call in calls)
    for call in calls:
        if call.func.attr not in DRAW:
            continue
        given = {word.arg: word.value for word in call.keywords}
        asked = [*call.args[:1], *(given[name] for name in ("prompt", "prompts") if name in given)]
        why = OTHER_MODEL if other else GIVEN_IMAGE if "canvas" in given else None
        for value in asked:
            yield from (Printed(place, text, why) for text in _texts(value, texts))


def _texts(value: ast.expr, names: dict[str, ast.expr]) -> Iterator[str]:
    """The texts of an expression: one, a list of them, or names of such."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    elif isinstance(value, ast.List | ast.Tuple):
        for one in value.elts:
            yield from _texts(one, names)
    elif isinstance(value, ast.Name) and value.id in names:
        yield from _texts(names[value.id], {name: one for name, one in names.items() if name != value.id})


def of_demo(makefile: str) -> Iterator[Printed]:
    found = re.search(r"^DEMO_PROMPTS \?= ((?:.*\\\n)*.*)", makefile, re.M)
    for prompt in shlex.split(found[1].replace("\\\n", " ")) if found else ():
        yield Printed(_name(DEMO), prompt)


def _of_text(text: str, pattern: str, place: str) -> Iterable[Printed]:
    return [Printed(place, found[1]) for found in re.finditer(pattern, text, re.M)]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


if __name__ == "__main__":
    for one in printed_prompts():
        console.answer(f"{one.place}: {one.prompt}" + (f"  ({one.left_out})" if one.left_out else ""))
