"""The routes of jobs, and those that tell about the server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from dalle_mini.serving.answers import EventStream, Signer, base64_of, event, json_object
from dalle_mini.serving.drawing import Partial
from dalle_mini.serving.job import Finished, Job, png, told_image
from dalle_mini.serving.jobs import Jobs
from dalle_mini.serving.orders import read_order, read_prompt
from dalle_mini.serving.problems import Problem
from dalle_mini.serving.store import ENDED, Image, Record
from dalle_mini.version import __version__

PARTIALS = 4  # candidates with partial images, if the client does not say


class JobRoutes:
    """The handlers of `/jobs`, `/words` and `/about`."""

    def __init__(self, jobs: Jobs, signer: Signer):
        self._jobs, self._signer = jobs, signer

    async def create_job(self, request: Request) -> Response:
        about, settings = self._jobs.need(), self._jobs.settings
        fields = await json_object(request)
        order = await asyncio.to_thread(read_order, fields, about, settings.pictures, settings.pixels)
        order = await asyncio.to_thread(self._jobs.check, order)
        job = await self._jobs.submit(order, request.scope["owner"], request.scope["client_name"])
        return JSONResponse(self._live(job), 202, {"Location": f"jobs/{job.id}"})

    async def job(self, request: Request) -> Response:
        return JSONResponse(self._told(self._find(request)))

    async def cancel_job(self, request: Request) -> Response:
        found = self._find(request)
        if isinstance(found, Job) and not found.is_over:
            await self._jobs.cancel(found)
            return JSONResponse(self._live(found))
        told = self._told(found)
        if request.query_params.get("ended") == "keep":  # whoever cancels may come a moment too late
            return JSONResponse(told)
        await self._jobs.delete(found.record if isinstance(found, Job) else found)
        return JSONResponse(told)

    async def job_events(self, request: Request) -> Response:
        found, wanted = self._find(request), request.query_params.get("partials", str(PARTIALS))
        if not (wanted.isascii() and wanted.isdecimal() and len(wanted) < 5):
            raise Problem(400, "partials is the number of candidates with partial images", "partials")
        if isinstance(found, Job):
            return EventStream(self._follow(found, request.headers.get("last-event-id"), int(wanted)))
        return EventStream(self._replay(found))

    async def job_image(self, request: Request) -> Response:
        id, number = request.path_params["id"], request.path_params["number"]
        query = request.query_params
        if "sign" in query:
            if not self._signer.allows(id, number, query.get("until", ""), query["sign"]):
                raise Problem(401, "this address has expired, or was changed: ask for the job again")
            record = await asyncio.to_thread(self._jobs.store.find, id)
            if record is None:
                raise Problem(404, "there is no such job")
            if record.state == "deleted":
                raise Problem(410, "the images of this job have been deleted: draw it again")
        else:
            self._find(request)
        images = await asyncio.to_thread(self._jobs.store.images, id)
        image = next((one for one in images if one.number == number), None)
        if image is None:
            raise Problem(404, "the job has no such image, or not yet")
        file = self._jobs.store.image_file(id, image.candidate)
        if not file.is_file():
            raise Problem(410, "the images of this job have been deleted: draw it again")
        return FileResponse(file, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

    async def words(self, request: Request) -> Response:
        self._jobs.need()
        prompt = read_prompt(request.query_params)
        unknown = await asyncio.to_thread(self._jobs.unknown_words, prompt[:2000])
        found = [{"word": word, "nearest": list(near)} for word, near in unknown or ()]
        return JSONResponse({"known": unknown is not None, "unknown": found})

    async def about(self, request: Request) -> Response:
        about, settings = self._jobs.need(), self._jobs.settings
        names = ("model", "weights", "card", "checksums", "grid", "resolution", "image_length", "codebook_size")
        told = {name: getattr(about, name) for name in (*names, "dtype", "device")}
        defaults = {name: getattr(about, name) for name in ("guidance", "temperature", "top_k")}
        candidates = min(16, settings.pictures)
        told |= {"defaults": defaults | {"candidates": candidates, "n": min(4, candidates)}, "limits": settings.told}
        return JSONResponse(told | {"version": __version__, "keys": bool(settings.keys)})

    # --- how jobs are told

    def _find(self, request: Request) -> Job | Record:
        return self._jobs.find(request.path_params["id"], request.scope["owner"])

    def _told(self, found: Job | Record) -> dict[str, Any]:
        return self._live(found) if isinstance(found, Job) else self._ended(found)

    def _live(self, job: Job) -> dict[str, Any]:
        jobs = self._jobs
        moving = jobs.stand(job) | {"passes_done": job.passes}
        return self._job(job.record, job.state, job.images) | moving | {"passes_total": job.total, "error": _error(job)}

    def _ended(self, record: Record) -> dict[str, Any]:
        about = self._jobs.need()
        images = self._jobs.store.images(record.id) if record.state == "done" else []
        total = about.image_length * record.order.settings.candidates
        passes = {"passes_done": total if record.state == "done" else 0, "passes_total": total}
        told = self._job(record, record.state, images)
        return told | {"place": None, "seconds_left": None} | passes | {"error": _error(record)}

    def _job(self, record: Record, state: str, images: list[Image]) -> dict[str, Any]:
        keep = self._jobs.settings.keep_hours * 3600
        return {
            "id": record.id,
            "state": state,
            "created": int(record.created),
            "asked": record.order.asked,
            "images": [self._image(image, record) for image in images],
            "expires": None if record.ended is None else int(record.ended + keep),
        }

    def _image(self, image: Image, record: Record) -> dict[str, Any]:
        told = told_image(image, record, self._jobs.need())
        query = self._signer.query(record.id, image.number or 0, self._jobs.settings.keep_hours * 3600)
        return told | {"url": f"jobs/{record.id}/images/{image.number}.png?{query}"}

    async def _follow(self, job: Job, after: str | None, candidates: int) -> AsyncIterator[bytes]:
        with self._jobs.watching(job, candidates):
            async for told in job.log.follow(after):
                if told is None:
                    yield b": still here\n\n"
                elif not isinstance(told.data, Partial) or told.data.candidate - job.record.order.first < candidates:
                    yield event(await self._data(job, told.data, candidates > 0), told.kind, told.id)

    async def _data(self, job: Job, data: Any, with_pixels: bool) -> Any:
        if isinstance(data, Partial):
            image = base64_of(await asyncio.to_thread(png, data.pixels, {}))
            return {"candidate": data.candidate, "rows": data.rows, "total": data.total, "image": image}
        if isinstance(data, Finished):
            told: dict[str, Any] = {"candidate": data.image.candidate, "score": round(data.image.score, 4)}
            told |= {"rank": data.rank, "finished": data.finished}
            if with_pixels:
                file = self._jobs.store.image_file(job.id, data.image.candidate)
                with contextlib.suppress(OSError):  # the job has ended meanwhile
                    told["image"] = base64_of(await asyncio.to_thread(file.read_bytes))
            return told
        if isinstance(data, Image):
            return self._image(data, job.record)
        return self._live(data) if isinstance(data, Job) else data

    async def _replay(self, record: Record) -> AsyncIterator[bytes]:
        """The events of a job that had ended before: they have no ids, as there is nothing to go on with."""
        told = self._ended(record)
        yield event({"state": told["state"], "place": None, "seconds_left": None, "error": told["error"]}, "state")
        for image in told["images"]:
            yield event(image, "image")
        yield event(told, "done")


def _error(job: Job | Record) -> dict[str, str] | None:
    return {"message": job.error} if job.error and job.state in ENDED else None
