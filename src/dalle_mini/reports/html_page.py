"""The frame of every page that we write: nothing in it runs, and nothing is asked for from outside.

A page often holds strangers' text. Each piece of it is escaped where it is put in, and the policy in the head forbids
scripts, requests, forms and another base, should one slip through.
"""

import html
from collections.abc import Sequence
from pathlib import Path

STYLE = Path(__file__).with_name("style.css")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def html_page(title: str, body: Sequence[str]) -> str:
    """A page of its own, in the one style; `body` holds markup, `title` is text."""
    css = STYLE.read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{css}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )
