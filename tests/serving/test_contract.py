"""openapi.json against the routes, and the answers against its schemas."""

import json
import re

import pytest
from starlette.routing import Route

from dalle_mini.serving.app import OPENAPI, WITH_KEY

API = json.loads(OPENAPI.read_text("utf-8"))
WITHOUT_KEY = {"/healthz", "/readyz", "/openapi.json", "/v1/files/{id}/{number}.{suffix}"}


def test_the_document_and_the_routes_are_the_same(client):
    served = {}
    for route in client.app.routes:
        if isinstance(route, Route):
            path = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)
            served.setdefault(path, set()).update(route.methods - {"HEAD"})
    told = {path: {method.upper() for method in methods} for path, methods in API["paths"].items()}
    assert told == served


def test_each_operation_has_a_name_and_says_how_it_fails():
    operations = [one for methods in API["paths"].values() for one in methods.values()]
    assert len({one["operationId"] for one in operations}) == len(operations)
    for one in operations:
        assert one["summary"] and one["responses"]


def test_references_lead_somewhere():
    for reference in re.findall(r'"#/([^"]+)"', OPENAPI.read_text("utf-8")):
        place = API
        for name in reference.split("/"):
            place = place[name]


def test_every_route_but_four_needs_a_key(serve):
    client = serve(keys=("right",))
    for path, methods in API["paths"].items():
        for method in methods:
            url = path.format(id="x", number=1, suffix="png", model="m")
            status = client.request(method, url).status_code
            assert (status == 401) == (path not in WITHOUT_KEY), path
    assert client.get("/").status_code == 200
    assert all(path.startswith(WITH_KEY) for path in API["paths"] if path not in WITHOUT_KEY)


def matches(value, schema, place="$"):
    """Hold a value against the part of JSON Schema that the document uses."""
    if "$ref" in schema:
        return matches(value, API["components"]["schemas"][schema["$ref"].rpartition("/")[2]], place)
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    wanted = schema.get("type", [])
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if wanted:
        fits = [value is None if kind == "null" else isinstance(value, kinds[kind]) for kind in wanted]
        assert any(fits), (place, value, wanted)
    if "enum" in schema:
        assert value in schema["enum"], (place, value)
    if isinstance(value, dict):
        assert set(schema.get("required", ())) <= value.keys(), (place, value.keys())
        for name, one in value.items():
            if name in schema.get("properties", {}):
                matches(one, schema["properties"][name], f"{place}.{name}")
            elif schema.get("properties"):
                pytest.fail(f"{place}.{name} is not in the document")
    if isinstance(value, list) and "items" in schema:
        for number, one in enumerate(value):
            matches(one, schema["items"], f"{place}[{number}]")


def test_answers_are_as_the_document_says(client):
    job = client.post("/jobs", json={"prompt": "a fox", "candidates": 2, "n": 1}).json()
    schemas = API["components"]["schemas"]
    matches(job, schemas["Job"])
    with client.stream("GET", f"/jobs/{job['id']}/events") as response:
        last = [line for line in response.iter_lines() if line.startswith("data: ")][-1]
    matches(json.loads(last[6:]), schemas["Job"])
    matches(client.get(f"/jobs/{job['id']}").json(), schemas["Job"])
    matches(client.get("/about").json(), schemas["About"])
    matches(client.get("/words", params={"prompt": "une chaise"}).json(), schemas["Words"])
    matches(client.get("/v1/models/x").json(), schemas["Model"])
    matches(client.get("/jobs/none").json(), schemas["Error"])
    answer = client.post("/v1/images/generations", json={"prompt": "a fox"}).json()
    matches(answer, schemas["Images"])
