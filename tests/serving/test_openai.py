"""OpenAI's Images API: the official Python SDK unmodified, and what other clients send."""

import base64
import io
import json
import shutil
import subprocess
import threading

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from fake_drawer import FakeDrawer, pixels_of, tokens_of
from serving_client import mask_of, picture, sdk


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_generate(client):
    answer = sdk(client).images.generate(
        prompt="a red apple", n=2, model="gpt-image-1", extra_body={"seed": 7, "candidates": 4}
    )
    best = sorted(range(4), key=lambda number: (-int(tokens_of("a red apple", 7, number)[0]), number))[:2]
    for number, image in zip(best, answer.data, strict=True):
        assert (np.asarray(opened(image.b64_json)) == pixels_of(tokens_of("a red apple", 7, number))).all()
    assert answer.usage.input_tokens == 3 and answer.usage.output_tokens == 4 * 16
    assert answer.usage.total_tokens == 3 + 4 * 16 and answer.size == "16x16" and answer.output_format == "png"


def test_what_the_model_is_called(client):
    assert [model.id for model in sdk(client).models.list()] == ["fake"]
    assert sdk(client).models.retrieve("dall-e-3").id == "dall-e-3"
    raw = sdk(client).images.with_raw_response.generate(prompt="a fox", model="dall-e-3", size="64x32")
    assert raw.headers["x-model"] == "fake" and raw.headers["x-drawn-size"] == "16x16"


@pytest.mark.parametrize(("size", "square"), [("64x64", 64), ("40x64", 40), ("64x20", 20)])
def test_the_picture_is_fitted_into_the_size(client, size, square):
    image = opened(sdk(client).images.generate(prompt="a fox", size=size).data[0].b64_json)
    assert f"{image.width}x{image.height}" == size
    (number,) = [max(range(16), key=lambda one: int(tokens_of("a fox", 0, one)[0]))]
    drawn = Image.fromarray(pixels_of(tokens_of("a fox", 0, number)))
    left, top = (image.width - square) // 2, (image.height - square) // 2
    inner = image.crop((left, top, left + square, top + square))
    assert (np.asarray(inner) == np.asarray(drawn.resize((square, square), Image.Resampling.LANCZOS))).all()
    around = np.asarray(image).copy()
    around[top : top + square, left : left + square] = 255
    assert (around == 255).all()


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_formats(client, kind):
    answer = sdk(client).images.generate(prompt="a fox", output_format=kind, output_compression=50)
    assert opened(answer.data[0].b64_json).format.lower() == kind


def test_an_address_expires(client, monkeypatch):
    answer = sdk(client).images.generate(prompt="a fox", response_format="url", size="32x32", output_format="webp")
    url = answer.data[0].url
    got = httpx.get(url, trust_env=False)
    assert got.headers["content-type"] == "image/webp" and Image.open(io.BytesIO(got.content)).size == (32, 32)
    assert httpx.get(url.replace("32x32", "4096x4096"), trust_env=False).status_code == 403
    assert httpx.get(url.replace("until=1", "until=2"), trust_env=False).status_code == 403
    soon = int(url.partition("until=")[2].partition("&")[0]) + 1
    monkeypatch.setattr(client.signer, "_clock", lambda: soon)
    assert httpx.get(url, trust_env=False).json()["error"]["code"] == "expired"


def test_fields_that_make_no_sense_are_ignored(client):
    answer = sdk(client).images.generate(
        prompt="a fox", quality="hd", background="transparent", moderation="low", style="vivid", size="auto", user="me"
    )
    assert opened(answer.data[0].b64_json).size == (16, 16)


def test_the_body_of_open_webui(client):
    body = {"model": "fake", "prompt": "a fox", "n": 1, "size": "512x512", "response_format": "b64_json"}
    answer = client.post("/v1/images/generations", json=body)
    assert answer.status_code == 200 and opened(answer.json()["data"][0]["b64_json"]).size == (512, 512)


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_edit_by_a_mask(client, name):
    files = {name: ("a.png", picture(), "image/png"), "mask": ("m.png", mask_of([0, 5]), "image/png")}
    answer = client.post("/v1/images/edits", data={"prompt": "a fox", "n": "1", "seed": "3"}, files=files)
    assert answer.status_code == 200, answer.text
    (start,) = [part.start for part in client.drawer.calls[0]]
    assert start.cells == (0, 5) and start.pixels.shape == (16, 16, 3) and not start.vary
    assert (start.pixels == (10, 200, 30)).all()
    assert client.drawer.calls[-1][0].settings.seed == 3


@pytest.mark.filterwarnings("ignore:deprecated")
def test_edit_and_variation_by_the_sdk(client):
    images = sdk(client).images
    edited = images.edit(
        image=("a.png", picture()), mask=("m.png", mask_of([1])), prompt="a fox", size="32x32", extra_body={"seed": 4}
    )
    assert opened(edited.data[0].b64_json).size == (32, 32)
    assert edited.usage.input_tokens_details.image_tokens == 16
    own = io.BytesIO(picture(mode="RGBA", color=(0, 0, 0, 0)))
    images.edit(image=("clear.png", own), prompt="a fox")
    assert client.drawer.calls[-1][0].start.cells == tuple(range(16))
    images.edit(image=("a.png", picture()), prompt="a fox")
    assert client.drawer.calls[-1][0].start.vary == 0.5
    varied = images.create_variation(image=("a.png", picture()), n=2, extra_body={"vary": 0.25})
    assert len(varied.data) == 2 and client.drawer.calls[-1][0].start.vary == 0.25


def test_streamed_partials(serve):
    client = serve(FakeDrawer(0.05))
    stream = sdk(client).images.generate(
        prompt="a fox", stream=True, partial_images=2, size="32x32", extra_body={"seed": 1}
    )
    events = list(stream)
    kinds = [event.type for event in events]
    assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    for event in events:
        assert opened(event.b64_json).size == (32, 32) and event.size == "32x32" and event.created_at > 0
    assert events[-1].usage.output_tokens == 16
    final = np.asarray(opened(events[-1].b64_json))
    assert (final == np.asarray(Image.fromarray(pixels_of(tokens_of("a fox", 1, 0))).resize((32, 32), 1))).all()
    stream = sdk(client).images.edit(
        image=("a.png", picture()), mask=("m.png", mask_of([1])), prompt="a fox", stream=True, partial_images=1
    )
    assert [event.type for event in stream] == ["image_edit.partial_image", "image_edit.completed"]


def test_an_error_inside_a_stream(client):
    with pytest.raises(openai.APIError, match="cannot be drawn"):
        list(sdk(client).images.generate(prompt="it fails", stream=True))


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "unreadable"}, "prompt"),
        ({"prompt": "a fox", "n": 1000}, "n"),
        ({"prompt": "a fox", "size": "9999x9999"}, "size"),
        ({"prompt": "a fox", "size": "big"}, "size"),
        ({"prompt": "a fox", "response_format": "gif"}, "response_format"),
        ({"prompt": "a fox", "extra_body": {"temperature": -1}}, "temperature"),
        ({"prompt": "a fox", "extra_body": {"seed": "x"}}, "seed"),
        ({"prompt": "a fox", "partial_images": 99}, "partial_images"),
    ],
)
def test_a_bad_request_is_the_sdks_exception(client, options, param):
    with pytest.raises(openai.BadRequestError) as caught:
        sdk(client).images.generate(**options)
    assert caught.value.param == param and set(caught.value.body) == {"message", "type", "param", "code"}


def test_errors_as_the_sdks_exceptions(serve, tmp_path):
    client = serve(keys=("right",), per_minute=3, body_bytes=2000)
    with pytest.raises(openai.AuthenticationError):
        sdk(client, "wrong").images.generate(prompt="a fox")
    right = sdk(client, "right")
    with pytest.raises(openai.APIStatusError) as caught:
        right.images.generate(prompt="a" * 3000)
    assert caught.value.status_code == 413
    with pytest.raises(openai.RateLimitError) as limited:
        for _ in range(5):
            right.models.list()
    assert int(limited.value.response.headers["retry-after"]) >= 1


def test_an_internal_error_tells_nothing_of_the_machine(client):
    with pytest.raises(openai.InternalServerError) as caught:
        sdk(client).images.generate(prompt="it explodes")
    assert "/secret/path" not in str(caught.value) and "log" in str(caught.value)
    assert sdk(client).images.generate(prompt="a fox").data  # it goes on


def test_before_the_model_is_loaded(serve):
    class Slow(FakeDrawer):
        loaded = threading.Event()

        def open(self):
            self.loaded.wait()
            return super().open()

    client = serve(Slow(), wait=False)
    assert client.get("/healthz").status_code == 200
    answer = client.get("/readyz")
    assert answer.status_code == 503 and answer.headers["retry-after"]
    with pytest.raises(openai.InternalServerError):
        sdk(client).images.generate(prompt="a fox")
    Slow.loaded.set()


NODE = """
import OpenAI from "openai";
import { toFile } from "openai";
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "any", maxRetries: 0 });
const told = {};
const one = await client.images.generate({ prompt: "a fox", n: 2, size: "32x32", seed: 7 });
told.generated = one.data.length;
const png = Buffer.from(process.argv[3], "base64"), mask = Buffer.from(process.argv[4], "base64");
const file = (data, name) => toFile(data, name, { type: "image/png" });
const image = await file(png, "a.png");
const edited = await client.images.edit({ image, mask: await file(mask, "m.png"), prompt: "a fox" });
told.edited = edited.data[0].b64_json.length > 0;
const varied = await client.images.createVariation({ image: await file(png, "a.png") });
told.varied = varied.data.length;
told.kinds = [];
const stream = await client.images.generate({ prompt: "a fox", stream: true, partial_images: 2 });
for await (const event of stream) told.kinds.push(event.type);
try { await client.images.generate({ prompt: "a fox", n: 1000 }); } catch (error) {
  told.error = [error instanceof OpenAI.BadRequestError, error.param];
}
try { for await (const _ of await client.images.generate({ prompt: "it fails", stream: true })); } catch (error) {
  told.streamed = error instanceof OpenAI.APIError;
}
told.models = (await client.models.list()).data[0].id;
console.log(JSON.stringify(told));
"""


@pytest.mark.slow
def test_the_sdk_of_node(serve, tmp_path):
    client = serve(FakeDrawer(0.05))
    subprocess.run([shutil.which("npm"), "install", "openai@6", "--no-audit", "--no-fund"], cwd=tmp_path, check=True)
    (tmp_path / "run.mjs").write_text(NODE)
    texts = [base64.b64encode(data).decode() for data in (picture(), mask_of([1]))]
    ran = subprocess.run(
        [shutil.which("node"), "run.mjs", f"{client.base_url}/v1", *texts],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    assert json.loads(ran.stdout) == {
        "generated": 2,
        "edited": True,
        "varied": 1,
        "kinds": ["image_generation.partial_image"] * 2 + ["image_generation.completed"],
        "error": [True, "n"],
        "streamed": True,
        "models": "fake",
    }
