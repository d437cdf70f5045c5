"""The lines of docs/serve.md that need a server."""

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from dalle_mini.cli import build_parser
from dalle_mini.serving.settings import ServerSettings
from serving_client import sdk

PAGE = Path(__file__).parents[2] / "docs" / "serve.md"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)


def test_lines_of_curl(client, tmp_path):
    drawing, jobs = [block for block in blocks("bash") if block.startswith("curl ")]

    def run(block):
        block = block.replace("http://127.0.0.1:8000", str(client.base_url))
        return subprocess.run(["bash", "-e", "-c", block], cwd=tmp_path, check=True, capture_output=True).stdout

    run(drawing)
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert base64.b64decode(answer["data"][0]["b64_json"])[:4] == b"\x89PNG"
    lines = re.split(r"\n(?=curl )", jobs.strip())
    id = json.loads(run(lines[0]))["id"]
    assert b"event: done" in run(lines[1].replace("ID", id))
    assert json.loads(run(lines[2].replace("ID", id)))["id"] == id


def test_the_page_names_all_flags_of_limits_and_all_routes_of_jobs():
    page = PAGE.read_text("utf-8")
    for flag in ("queue", "pictures", "per-minute", "body-bytes", "pixels", "keep-hours", "keep-bytes", "patience"):
        assert f"--{flag}" in page
    assert "/v1/images/edits" in page and "Last-Event-ID" in page


def test_a_space_of_hugging_face_is_the_dockerfile_with_two_lines_changed():
    (front,) = [yaml.safe_load(block.strip().strip("-")) for block in blocks("yaml") if "sdk:" in block]
    (changed,) = blocks("dockerfile")
    argument, command = re.fullmatch(r"(ARG EXTRAS)=serve\n(CMD .*)", changed.replace("\\\n", ""), re.S).groups()
    lines = (PAGE.parents[1] / "Dockerfile").read_text().splitlines()
    assert [sum(line.startswith(start) for line in lines) for start in (argument, "CMD ")] == [1, 1]
    words = json.loads(command.removeprefix("CMD"))
    args = build_parser().parse_args(words)
    assert front["sdk"] == "docker" and args.port == front["app_port"] and args.host == "0.0.0.0"
    ServerSettings(Path(args.folder), frames=tuple(args.frame), queue=args.queue, pictures=args.pictures)


@pytest.mark.slow
def test_the_example_of_javascript(client, tmp_path):
    subprocess.run([shutil.which("npm"), "install", "openai@6", "--no-audit", "--no-fund"], cwd=tmp_path, check=True)
    (code,) = blocks("js")
    (tmp_path / "run.mjs").write_text(code.replace("http://127.0.0.1:8000", str(client.base_url)))
    subprocess.run([shutil.which("node"), "run.mjs"], cwd=tmp_path, check=True)
    assert (tmp_path / "apple.png").read_bytes()[:4] == b"\x89PNG"
    assert sdk(client).models.list()
