"""A client of a server, for its tests."""

import io
import json

import numpy as np
import openai
from PIL import Image


def events(response):
    """The (kind, data, id) of server-sent events."""
    kind = id = None
    for line in response.iter_lines():
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "id":
            id = value
        elif name == "data":
            yield kind, json.loads(value), id
            kind = id = None


def watched(client, id, headers=None, **params):
    with client.stream("GET", f"/jobs/{id}/events", headers=headers, params=params) as response:
        assert response.status_code == 200
        return list(events(response))


def finished(client, **fields):
    job = client.post("/jobs", json=fields)
    assert job.status_code == 202, job.text
    kind, job, _ = watched(client, job.json()["id"])[-1]
    assert kind == "done"
    return job


def sdk(client, key="any", **options):
    return openai.OpenAI(base_url=f"{client.base_url}/v1", api_key=key, max_retries=0, **options)


def picture(size=(16, 16), mode="RGB", color=None) -> bytes:
    image = Image.new(mode, size, color or ((10, 200, 30) if mode == "RGB" else (10, 200, 30, 255)))
    image.save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def mask_of(cells) -> bytes:
    alpha = np.full((4, 4), 255, np.uint8)
    alpha.flat[list(cells)] = 0
    image = Image.fromarray(np.zeros((16, 16, 3), np.uint8))
    image.putalpha(Image.fromarray(alpha).resize((16, 16), Image.Resampling.NEAREST))
    image.save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()
