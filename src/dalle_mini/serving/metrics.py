"""Numbers for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "dalle_requests", "Requests by route and status", ["route", "status"], registry=registry
        )
        self.accepted = Counter("dalle_jobs_accepted", "Jobs accepted", registry=registry)
        self.ended = Counter("dalle_jobs_ended", "Jobs that have ended, by state", ["state"], registry=registry)
        self.images = Counter("dalle_images", "Images drawn", registry=registry)
        self.waiting = Gauge("dalle_jobs_waiting", "Jobs that wait", registry=registry)
        self.stored = Gauge("dalle_stored_bytes", "Bytes of images that are kept", registry=registry)
        self.waited = Histogram("dalle_job_wait_seconds", "From accepted to begun", buckets=SECONDS, registry=registry)
        self.calls = Histogram("dalle_call_seconds", "Duration of a call", buckets=SECONDS, registry=registry)

    def text(self) -> bytes:
        return generate_latest(self._registry)
