"""Jobs over HTTP, drawn by a fake."""

import base64
import io
from urllib.parse import unquote

import numpy as np
from PIL import Image

from fake_drawer import FakeDrawer, tokens_of
from serving_client import events, finished, watched


def test_a_job_is_drawn_and_its_best_images_are_kept(client):
    job = finished(client, prompt="a red apple", seed=7, candidates=8, n=3)
    assert job["state"] == "done" and job["passes_done"] == job["passes_total"] == 128
    scores = {number: float(tokens_of("a red apple", 7, number)[0]) for number in range(8)}
    best = sorted(scores, key=lambda number: (-scores[number], number))[:3]
    assert [image["candidate"] for image in job["images"]] == best
    assert [image["number"] for image in job["images"]] == [1, 2, 3]
    for image in job["images"]:
        assert image["tokens"] == tokens_of("a red apple", 7, image["candidate"]).tolist()
        png = client.get(image["url"])
        assert png.status_code == 200 and png.headers["content-type"] == "image/png"
        with Image.open(io.BytesIO(png.content)) as picture:
            assert picture.text["dalle-mini"] == image["address"]
            assert np.asarray(picture)[::4, ::4, 0].ravel().tolist() == image["tokens"]
    assert image["address"].startswith("p=a%20red%20apple&s=7&i=") and "&m=0123456789ab" in image["address"]


def test_events_come_in_order_and_can_be_resumed(serve):
    client = serve(FakeDrawer(stepped=True))
    id = client.post("/jobs", json={"prompt": "a fox", "candidates": 1, "n": 1}).json()["id"]
    with client.stream("GET", f"/jobs/{id}/events") as response:
        seen = []
        for kind, data, number in events(response):
            seen.append((kind, data, number))
            if kind == "state" and data["state"] == "running":
                client.drawer.step()
            if kind == "partial":
                break
    kinds = [kind for kind, *_ in seen]
    assert kinds[-1] == "partial" and seen[-1][1]["rows"] == 1 and seen[-1][1]["total"] == 4
    png = base64.b64decode(seen[-1][1]["image"])
    assert Image.open(io.BytesIO(png)).size == (16, 16)
    client.drawer.step(3)
    rest = watched(client, id, {"Last-Event-ID": seen[-1][2]})
    assert not {number for *_, number in rest} & {number for *_, number in seen}
    assert [kind for kind, *_ in rest][-2:] == ["image", "done"]
    again = watched(client, id, {"Last-Event-ID": "of.another.server"})
    assert [kind for kind, *_ in again][-2:] == ["image", "done"]


def test_finished_images_are_told_before_the_job_ends(serve):
    client = serve(FakeDrawer(stepped=True))
    job = client.post("/jobs", json={"prompt": "a fox", "candidates": 20, "n": 20, "stay": True}).json()
    scores = {number: float(tokens_of("a fox", 0, number)[0]) for number in range(16)}
    client.drawer.step(4)
    for wanted in ("0", "4"):
        told = {}
        with client.stream("GET", f"/jobs/{job['id']}/events", params={"partials": wanted}) as response:
            for kind, data, _ in events(response):
                if kind == "finished":
                    told[data["candidate"]] = data
                if len(told) == 16:
                    break
        order = sorted(scores, key=lambda number: (-scores[number], number))
        for number, data in told.items():
            rank = {"score": scores[number], "rank": order.index(number) + 1, "finished": 16}
            assert data.items() >= rank.items() and ("image" in data) == (wanted == "4")
    png = Image.open(io.BytesIO(base64.b64decode(data["image"])))
    assert np.asarray(png)[::4, ::4, 0].ravel().tolist() == tokens_of("a fox", 0, number).tolist()
    state = client.get(f"/jobs/{job['id']}").json()
    assert (state["state"], state["passes_done"]) == ("running", 16 * 16)
    client.drawer.step(8)
    assert len(watched(client, job["id"])[-1][1]["images"]) == 20
    assert "finished" not in [kind for kind, *_ in watched(client, job["id"])]


def test_who_asks_for_much_does_not_starve_who_asks_for_little(serve, tmp_path):
    client = serve(FakeDrawer(stepped=True), keys=("many", "one"), pictures=500)
    many, one = ({"Authorization": f"Bearer {key}"} for key in ("many", "one"))
    first = client.post("/jobs", json={"prompt": "much", "candidates": 500, "n": 1}, headers=many).json()["id"]
    client.drawer.step(1)
    second = client.post("/jobs", json={"prompt": "little", "candidates": 1, "n": 1}, headers=one).json()["id"]
    client.drawer.step(3 + 2 * 4)
    with client.stream("GET", f"/jobs/{second}/events", headers=one) as response:
        assert list(events(response))[-1][1]["state"] == "done"
    assert [part.count for call in client.drawer.calls[:2] for part in call] == [16, 1]
    assert client.get(f"/jobs/{first}", headers=many).json()["state"] == "running"
    assert client.get(f"/jobs/{first}", headers=one).status_code == 404
    assert client.delete(f"/jobs/{first}", headers=one).status_code == 404
    assert client.delete(f"/jobs/{first}", headers=many).json()["state"] == "cancelled"


def test_the_address_of_an_edit_has_the_tokens_that_it_started_from(client):
    tokens = [5, -1, *range(14)]
    job = finished(client, prompt="a red apple", candidates=1, tokens=tokens, vary=0.5)
    address = dict(part.split("=", 1) for part in job["images"][0]["address"].split("&"))
    kept = base64.urlsafe_b64decode(unquote(address["c"]))
    assert np.frombuffer(kept, "<i2").tolist() == tokens
    assert address["v"] == "0.5"


def test_an_address_has_what_draws_the_image_again(client):
    plain = finished(client, prompt="a & b=c/é", seed=3, candidates=2, n=1)["images"][0]["address"]
    assert plain.startswith("p=a%20%26%20b%3Dc%2F%C3%A9&s=3&i=") and plain.endswith("&m=0123456789ab")
    knobs = {"guidance": 2.5, "temperature": 0.5, "top_k": 7, "top_p": 0.9, "negative_prompt": "a cat"}
    told = finished(client, prompt="a fox", candidates=1, n=1, **knobs)["images"][0]["address"]
    assert told == "p=a%20fox&s=0&i=0&m=0123456789ab&g=2.5&t=0.5&k=7&q=0.9&x=a%20cat"


def test_one_candidate_is_drawn_alone(client):
    all_of_them = finished(client, prompt="a fox", seed=5, candidates=4, n=4)["images"]
    for image in all_of_them:
        (alone,) = finished(client, prompt="a fox", seed=5, first=image["candidate"], candidates=1, n=1)["images"]
        assert {**alone, "number": 0, "url": ""} == {**image, "number": 0, "url": ""}


def test_who_cancels_too_late_keeps_the_images(client):
    job = finished(client, prompt="a fox", candidates=1, n=1)
    assert client.delete(f"/jobs/{job['id']}?ended=keep").json()["state"] == "done"
    assert client.get(job["images"][0]["url"]).status_code == 200
    client.delete(f"/jobs/{job['id']}")
    assert client.get(job["images"][0]["url"]).status_code == 410


def test_places_move_up_when_a_job_that_waits_is_cancelled(serve):
    client = serve(FakeDrawer(stepped=True))
    jobs = [
        client.post("/jobs", json={"prompt": f"cup {number}", "candidates": 16}).json()["id"] for number in range(4)
    ]
    with client.stream("GET", f"/jobs/{jobs[3]}/events") as response:
        places = []
        for kind, data, _ in events(response):
            if kind == "state" and data["place"] not in places[-1:]:
                places.append(data["place"])
                if data["place"] in (2, 3):
                    client.delete(f"/jobs/{jobs[data['place'] - 1]}")
            if places[-1:] == [1]:
                break
    assert places[-3:] == [3, 2, 1]
    assert client.get(f"/jobs/{jobs[0]}").json()["state"] == "running"


def test_words_that_the_model_has_never_seen(client):
    told = client.get("/words", params={"prompt": "une chaise"}).json()
    assert told == {"known": True, "unknown": [{"word": "chaise", "nearest": ["chair"]}]}
    assert client.get("/words").status_code == 400


def test_partials_only_of_the_candidates_that_are_wanted(serve):
    client = serve(FakeDrawer(0.1))
    for wanted in (0, 1, 3):
        job = client.post("/jobs", json={"prompt": "a fox", "seed": wanted, "candidates": 4, "n": 1, "first": 2}).json()
        seen = {data["candidate"] for kind, data, _ in watched(client, job["id"], partials=wanted) if kind == "partial"}
        assert seen == set(range(2, 2 + wanted))


def test_two_watch_one_job(serve):
    client = serve(FakeDrawer(stepped=True))
    id = client.post("/jobs", json={"prompt": "a fox", "candidates": 1, "n": 1}).json()["id"]
    with client.stream("GET", f"/jobs/{id}/events") as response:
        seen = events(response)
        next(seen)
        client.drawer.step(4)
        assert watched(client, id)[-1][0] == "done" and list(seen)[-1][0] == "done"
