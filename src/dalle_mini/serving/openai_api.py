"""OpenAI's Images API, so that its clients work unmodified.

Sources: https://developers.openai.com/api/reference/resources/images and the official SDKs.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np
from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from dalle_mini.serving.answers import EventStream, Signer, base64_of, event, in_time, json_object, unless_gone
from dalle_mini.serving.drawing import About, Partial, Start
from dalle_mini.serving.fitting import FORMATS, Wanted, encoded
from dalle_mini.serving.job import Job
from dalle_mini.serving.jobs import Jobs
from dalle_mini.serving.orders import Order, check, mask_cells, opened, read_prompt, read_settings, start_of
from dalle_mini.serving.problems import Problem
from dalle_mini.settings import check_whole

URL_SECONDS = 3600.0  # for which an address of an image is good
LARGEST = 4096  # pixels of a side that a picture is fitted into
MOST_PARTIALS = 16
NUMBERS = {"n": int, "candidates": int, "seed": int, "top_k": int, "partial_images": int, "output_compression": int}
NUMBERS_OF_FORMS = NUMBERS | dict.fromkeys(("guidance", "temperature", "top_p", "vary", "keep_top"), float)
SOMETHING = "a picture"  # is drawn where variations have no prompt
VARY = 0.5  # of an image's tokens are drawn anew where nothing else says how many


class OpenAIRoutes:
    """The handlers of `/v1`."""

    def __init__(self, jobs: Jobs, signer: Signer):
        self._jobs, self._signer = jobs, signer

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model(self._jobs.need().model)]})

    async def model(self, request: Request) -> Response:
        return JSONResponse(self._model(request.path_params["model"]), headers=self._headers(self._jobs.need()))

    async def generate(self, request: Request) -> Response:
        fields = await json_object(request)
        return await self._answer(request, "image_generation", fields, None)

    async def edit(self, request: Request) -> Response:
        about = self._jobs.need()
        fields, files = await self._form(request)
        start = await asyncio.to_thread(self._edited, fields, files, about)
        return await self._answer(request, "image_edit", fields, start)

    async def variation(self, request: Request) -> Response:
        about = self._jobs.need()
        fields, files = await self._form(request)
        fields.setdefault("prompt", SOMETHING)
        start = await asyncio.to_thread(self._varied, fields, files, about)
        return await self._answer(request, "image_edit", fields, start)

    # --- reading

    async def _form(self, request: Request) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The fields, as numbers where they are some, and the files of a form. Raises Problem."""
        try:
            form = await in_time(request.form(max_files=20, max_fields=60))
        except ValueError as error:  # of the parser
            raise Problem(400, f"the body is no form: {error}", code="invalid_form") from None
        try:
            return await self._read_form(form)
        finally:
            await form.close()

    async def _read_form(self, form: FormData) -> tuple[dict[str, Any], dict[str, bytes]]:
        fields: dict[str, Any] = {}
        files: dict[str, bytes] = {}
        for name, value in form.multi_items():
            name = name.removesuffix("[]")
            if isinstance(value, UploadFile):
                if name in files:
                    raise Problem(400, f"one {name[:60]} is enough: several are not supported", name[:60])
                files[name] = await in_time(value.read())
            elif name in NUMBERS_OF_FORMS:
                try:
                    fields[name] = NUMBERS_OF_FORMS[name](value[:100])
                except ValueError:
                    raise Problem(400, f"{name} is {value[:60]!r}, not a number", name) from None
            elif name == "stream":
                if value.lower() not in ("true", "false", "1", "0", ""):
                    raise Problem(400, "stream must be true or false", "stream")
                fields[name] = value.lower() in ("true", "1")
            else:
                fields[name] = value
        if "image" not in files:
            where = ": it must be a file; addresses are not fetched" if "image" in fields else ""
            raise Problem(400, f"image is missing{where}", "image", "missing_required_parameter")
        return fields, files

    def _edited(self, fields: Mapping[str, Any], files: Mapping[str, bytes], about: About) -> Start:
        """Without a mask the image's own transparency says what is drawn anew, else a half of its tokens is."""
        pixels, top, vary = self._jobs.settings.pixels, fields.get("keep_top"), fields.get("vary")
        picture = opened(files["image"], "image", pixels)
        cells: tuple[int, ...] = ()
        if "mask" in files:
            cells = mask_cells(files["mask"], picture.size, about, pixels)
        elif _is_transparent(opened(files["image"], "image", pixels, transparent=True)):
            cells = mask_cells(files["image"], picture.size, about, pixels)
        if not cells and top is None and vary is None:
            vary = VARY
        return start_of(picture, cells, top, vary or 0.0, about)

    def _varied(self, fields: Mapping[str, Any], files: Mapping[str, bytes], about: About) -> Start:
        picture = opened(files["image"], "image", self._jobs.settings.pixels)
        return start_of(picture, (), None, fields.get("vary", VARY), about)

    def _order(self, fields: Mapping[str, Any], start: Start | None, wanted: Wanted) -> Order:
        fields = dict(fields)
        if wanted.stream and fields.get("candidates") is None:
            fields["candidates"] = fields.get("n") or 1  # so that the partial images are those that will be returned
        settings = read_settings(fields, self._jobs.settings.pictures, n=1)
        return self._jobs.check(Order(read_prompt(fields), settings, start=start))

    # --- answering

    async def _answer(self, request: Request, kind: str, fields: Mapping[str, Any], start: Start | None) -> Response:
        about, wanted = self._jobs.need(), read_wanted(fields)
        order = await asyncio.to_thread(self._order, fields, start, wanted)
        job = await self._jobs.submit(order, request.scope["owner"], request.scope["client_name"])
        if wanted.stream:
            return EventStream(self._stream(job, kind, wanted, about), self._headers(about))
        try:
            await unless_gone(request.receive, self._end_of(job))
            self._check(job)
            data = [await self._image(request, job, number, wanted) for number in range(len(job.images))]
        except ClientDisconnect:
            return Response(status_code=499)
        finally:
            await self._jobs.cancel(job)
        size = wanted.told(about.resolution)
        told = {"created": int(time.time()), "data": data, "output_format": wanted.format, "size": size}
        more = {"quality": "auto", "background": "opaque", "usage": usage(order, about)}
        return JSONResponse(told | more, headers=self._headers(about))

    async def _end_of(self, job: Job) -> None:
        with self._jobs.watching(job, 0):
            async for _ in job.log.follow():
                pass

    @staticmethod
    def _check(job: Job) -> None:
        if job.state != "done":
            if not job.is_over:
                raise Problem(503, "the server stops: try again in a moment", code="not_ready", wait=10)
            raise Problem(503 if job.state == "failed" else 409, job.error or "the job was cancelled", code=job.state)

    async def _stream(self, job: Job, kind: str, wanted: Wanted, about: About) -> AsyncIterator[bytes]:
        """Partial images, evenly spaced, and then the images; an error is an event with an `error`."""
        shared = {
            "size": wanted.told(about.resolution),
            "quality": "auto",
            "background": "opaque",
            "output_format": wanted.format,
        }
        order, due = job.record.order, dict[int, int]()
        try:
            with self._jobs.watching(job, order.settings.candidates if wanted.partials else 0):
                async for told in job.log.follow():
                    if told is None:
                        yield b": still here\n\n"
                    elif isinstance(told.data, Partial):
                        found: Partial = told.data
                        sent = due.get(found.candidate, 0)
                        if sent < wanted.partials and found.rows * (wanted.partials + 1) >= found.total * sent:
                            due[found.candidate] = sent + 1
                            data = await asyncio.to_thread(encoded, found.pixels, wanted)
                            more = {"b64_json": base64_of(data), "partial_image_index": sum(due.values()) - 1}
                            yield _event(f"{kind}.partial_image", shared | more)
            self._check(job)
            for number in range(len(job.images)):
                data = await self._file(job, number, wanted)
                more = {"b64_json": base64_of(data), "usage": usage(order, about)}
                yield _event(f"{kind}.completed", shared | more)
        except Problem as problem:
            yield event(problem.told)
        finally:
            await asyncio.shield(self._jobs.cancel(job))

    async def _image(self, request: Request, job: Job, number: int, wanted: Wanted) -> dict[str, str]:
        if not wanted.url:
            return {"b64_json": base64_of(await self._file(job, number, wanted))}
        rank = job.images[number].number or 0
        query = self._signer.query(job.id, rank, URL_SECONDS, wanted.query)
        return {"url": f"{request.base_url}v1/files/{job.id}/{rank}.{wanted.format}?{query}"}

    async def file(self, request: Request) -> Response:
        """An image at the address that `response_format: url` gave."""
        id, number, query = request.path_params["id"], request.path_params["number"], request.query_params
        names = {"format": "output_format", "quality": "output_compression", "size": "size"}
        fields: dict[str, Any] = {names[name]: value for name, value in query.items() if name in names}
        if (quality := fields.get("output_compression")) is not None:
            is_number = quality.isascii() and quality.isdecimal() and len(quality) < 4
            fields["output_compression"] = int(quality) if is_number else -1
        wanted = read_wanted(fields)
        if not self._signer.allows(id, number, query.get("until", ""), query.get("sign", ""), wanted.query):
            raise Problem(403, "this address has expired, or was changed", code="expired")
        record = await asyncio.to_thread(self._jobs.store.find, id)
        images = [] if record is None else await asyncio.to_thread(self._jobs.store.images, id)
        image = next((one for one in images if one.number == number), None)
        if record is None or image is None:
            raise Problem(410, "this image has been deleted: draw it again")
        data = await asyncio.to_thread(self._read, id, image.candidate, wanted)
        return Response(data, media_type=f"image/{wanted.format}")

    async def _file(self, job: Job, number: int, wanted: Wanted) -> bytes:
        return await asyncio.to_thread(self._read, job.id, job.images[number].candidate, wanted)

    def _read(self, job: str, candidate: int, wanted: Wanted) -> bytes:
        """A finished image as it is wanted; as it was drawn, the file itself, with its settings."""
        try:
            data = self._jobs.store.image_file(job, candidate).read_bytes()
        except OSError:
            raise Problem(410, "this image has been deleted: draw it again") from None
        if wanted.size is None and wanted.format == "png":
            return data
        return encoded(np.asarray(opened(data, "image", 1 << 24)), wanted)

    def _headers(self, about: About) -> dict[str, str]:
        name = "".join(letter if " " <= letter <= "~" else "?" for letter in about.model)
        return {"X-Model": name, "X-Drawn-Size": f"{about.resolution}x{about.resolution}"}

    @staticmethod
    def _model(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": 0, "owned_by": "dalle-mini"}


def read_wanted(fields: Mapping[str, Any]) -> Wanted:
    """How the images are returned. Raises Problem."""
    formats = {"response_format": ("url", "b64_json"), "output_format": (*FORMATS, "jpg")}
    for name, known in formats.items():
        if fields.get(name) is not None and fields[name] not in known:
            raise Problem(400, f"{name} must be one of {', '.join(known)}", name)
    for name, low, high in (("partial_images", 0, MOST_PARTIALS), ("output_compression", 0, 100)):
        if fields.get(name) is not None:
            check(name, check_whole, name, fields[name], low, high)
    if not isinstance(fields.get("stream"), bool | None):
        raise Problem(400, "stream must be true or false", "stream")
    return Wanted(
        url=fields.get("response_format") == "url",
        format=(fields.get("output_format") or "png").replace("jpg", "jpeg"),
        quality=fields.get("output_compression"),
        size=_read_size(fields.get("size")),
        stream=bool(fields.get("stream")),
        partials=fields.get("partial_images") or 0,
    )


def _read_size(size: Any) -> tuple[int, int] | None:
    if size is None or size == "auto":
        return None
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", size) if isinstance(size, str) else None
    if found is None or max(int(found[1]), int(found[2])) > LARGEST:
        raise Problem(400, f"size must be WIDTHxHEIGHT, such as 512x512, at most {LARGEST} each, or auto", "size")
    return int(found[1]), int(found[2])


def usage(order: Order, about: About) -> dict[str, Any]:
    """Tokens that were read and drawn, of all candidates."""
    text, image = order.text_tokens, 0 if order.start is None else about.image_length
    drawn = about.image_length * order.settings.candidates
    return {
        "input_tokens": text + image,
        "input_tokens_details": {"text_tokens": text, "image_tokens": image},
        "output_tokens": drawn,
        "total_tokens": text + image + drawn,
    }


def _event(kind: str, data: Mapping[str, Any]) -> bytes:
    return event({"type": kind, "created_at": int(time.time()), **data}, kind)


def _is_transparent(picture: Any) -> bool:
    return picture.getchannel("A").getextrema()[0] < 128
