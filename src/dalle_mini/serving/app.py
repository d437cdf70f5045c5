"""The application: routes, and what stands before them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from dalle_mini.serving.answers import Signer
from dalle_mini.serving.drawing import Drawer
from dalle_mini.serving.guard import Guard
from dalle_mini.serving.jobs import Jobs
from dalle_mini.serving.jobs_api import JobRoutes
from dalle_mini.serving.metrics import Metrics
from dalle_mini.serving.openai_api import OpenAIRoutes
from dalle_mini.serving.problems import Problem
from dalle_mini.serving.settings import ServerSettings
from dalle_mini.serving.store import Store

HERE = Path(__file__).parent
PAGE, OPENAPI = HERE / "page", HERE / "openapi.json"
WITH_KEY = ("/v1/images", "/v1/models", "/jobs", "/words", "/about", "/metrics")


class Page(StaticFiles):
    """The page. A browser asks each time whether a file has changed, so that it never mixes those of two versions."""

    def file_response(self, *args, **kwargs) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def application(drawers: Sequence[Drawer], settings: ServerSettings) -> Starlette:
    """The server as an ASGI application; it begins to load the model when it is started.

    Raises:
        UserError: the folder cannot be used.
    """
    metrics, store = Metrics(), Store(settings.folder)
    jobs, signer = Jobs(drawers, store, settings, metrics), Signer(settings.folder)
    own, openai = JobRoutes(jobs, signer), OpenAIRoutes(jobs, signer)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await jobs.start()
        try:
            yield
        finally:
            await jobs.stop()
            store.close()

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(request: Request) -> Response:
        jobs.need()
        return JSONResponse({"status": "ready"})

    async def openapi(request: Request) -> Response:
        return FileResponse(OPENAPI, media_type="application/json")

    async def metrics_text(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    routes = [
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/openapi.json", openapi),
        Route("/metrics", metrics_text, name="metrics"),
        Route("/about", own.about),
        Route("/words", own.words),
        Route("/jobs", own.create_job, methods=["POST"]),
        Route("/jobs/{id}", own.job, methods=["GET"]),
        Route("/jobs/{id}", own.cancel_job, methods=["DELETE"]),
        Route("/jobs/{id}/events", own.job_events),
        Route("/jobs/{id}/images/{number:int}.png", own.job_image),
        Route("/v1/models", openai.models),
        Route("/v1/models/{model:path}", openai.model),
        Route("/v1/images/generations", openai.generate, methods=["POST"]),
        Route("/v1/images/edits", openai.edit, methods=["POST"]),
        Route("/v1/images/variations", openai.variation, methods=["POST"]),
        Route("/v1/files/{id}/{number:int}.{suffix}", openai.file),
        Mount("/", Page(directory=PAGE, html=True)),
    ]
    cross = Middleware(
        CORSMiddleware,
        allow_origins=settings.origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["Authorization", "Content-Type", "Last-Event-ID"],
        expose_headers=["Retry-After", "X-Model", "X-Drawn-Size", "Location"],
    )
    guard = Middleware(Guard, settings=settings, metrics=metrics, prefixes=WITH_KEY)
    app = Starlette(
        routes=routes,
        middleware=[cross, guard] if settings.origins else [guard],
        exception_handlers={Problem: _refuse, HTTPException: _refuse_plainly, Exception: _fail},
        lifespan=lifespan,
    )
    app.state.jobs, app.state.signer = jobs, signer
    return app


async def _refuse(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    return problem.response


async def _refuse_plainly(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = {404: "there is nothing at this address", 405: "this address does not take this method"}
    return Problem(error.status_code, told.get(error.status_code, str(error.detail))).response


async def _fail(request: Request, error: Exception) -> Response:
    return Problem(500, "the server failed: its log has the reason", code="internal_error").response
