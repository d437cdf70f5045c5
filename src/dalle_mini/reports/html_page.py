"""The frame of every page that we write: nothing in it runs, and nothing is asked for from outside.

What stands in a page is often strangers' text. Each piece of it is escaped where it is put in; the policy in the head
forbids scripts, requests, forms and another base to whatever would slip through.
"""

import html
from collections.abc import Sequence

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def html_page(title: str, css: str, body: Sequence[str]) -> str:
    """A page of its own; `body` holds markup, `title` is text."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{css}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )
