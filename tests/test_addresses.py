"""Passwords and keys in addresses are neither shown nor kept."""

import time

import pytest

from dalle_mini.addresses import hidden, hides, without_secrets
from dalle_mini.errors import UserError
from dalle_mini.runtime import console


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://user:hunter2@host:8000/x.tar", "http://***@host:8000/x.tar"),
        ("https://hunter2@host/x", "https://***@host/x"),
        ("ftp://user:p@hunter2@host/x", "ftp://***@host/x"),
        ("https://host/x.tar?token=hunter2", "https://host/x.tar?token=***"),
        (
            "https://b.s3.amazonaws.com/x?a=1&X-Amz-Signature=hunter2",
            "https://b.s3.amazonaws.com/x?a=***&X-Amz-Signature=***",
        ),
        ("zip://a.png::https://u:hunter2@host/x.zip?sig=hunter2", "zip://a.png::https://***@host/x.zip?sig=***"),
        ("see http://u:hunter2@a/b and s3://k:hunter2@c/d", "see http://***@a/b and s3://***@c/d"),
        ("http://user:it's\"hunter2<@host/x", "http://***@host/x"),
        ("https://host/x#access_token=hunter2.", "https://host/x#access_token=***."),
        ("1http://user:hunter2@host/x?a?b=hunter2", "1http://***@host/x?a?b=***"),
        ("s3://bucket/{00..12}.tar", "s3://bucket/{00..12}.tar"),
        ("owner/name@main, me@example.org, a?b=c", "owner/name@main, me@example.org, a?b=c"),
    ],
)
def test_addresses(address, shown, capsys):
    assert without_secrets(address) == shown == without_secrets(shown)
    assert str(UserError(f"{address}: no")) == f"{shown}: no"
    console.say(address)
    assert "hunter2" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    ["a" * 1_000_000 + " ://", "http://h/" + "?a" * 500_000, "http://h/?a=" + ":" * 500_000 + "x", "://'" * 250_000],
    ids=["letters", "question marks", "colons", "addresses"],
)
def test_a_long_text_takes_no_square_of_its_length(text):
    before = time.process_time()
    without_secrets(text)
    assert time.process_time() - before < 5


def test_plain_json():
    kept = hidden({"train": ["http://u:p@h/x"], "at": ("http://h/x?k=v", 1, None), "seed": 0})
    assert kept == {"train": ["http://***@h/x"], "at": ["http://h/x?k=***", 1, None], "seed": 0}
    assert hides(kept) and not hides({"train": ["http://h/x", "a***b"], "seed": 1})
