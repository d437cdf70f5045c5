"""Whose turn it is: clients take turns, so that one who asks for 500 images does not starve one who asks for 1."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict

from dalle_mini.serving.drawing import Part, Start
from dalle_mini.settings import GenerationSettings

REMEMBERED = 10_000  # clients


@dataclasses.dataclass
class Waiting:
    """The candidates of a job that no call has taken yet: numbers from `start` to `stop`, in order."""

    job: str
    client: str
    prompt: str
    settings: GenerationSettings
    start: Start | None
    left: list[tuple[int, int]]

    def part(self, most: int) -> Part:
        """The next candidates: a power of two of them, so that few programs are compiled."""
        first, stop = self.left[0]
        return Part(self.job, self.prompt, self.settings, self.start, first, largest_power(min(most, stop - first)))

    def take(self, part: Part) -> None:
        stop = self.left[0][1]
        self.left[:1] = [(part.first + part.count, stop)] if part.first + part.count < stop else []


class FairQueue:
    """Jobs that wait. Each client's are in order, and it is the turn of who was served longest ago."""

    def __init__(self) -> None:
        self._clients: dict[str, list[Waiting]] = {}
        self._served: OrderedDict[str, int] = OrderedDict()  # the last call of each client, also of those without jobs
        self._calls = 0

    def __len__(self) -> int:
        return sum(map(len, self._clients.values()))

    def of(self, client: str) -> int:
        return len(self._clients.get(client, ()))

    def add(self, waiting: Waiting) -> None:
        if waiting.left:
            self._clients.setdefault(waiting.client, []).append(waiting)

    def remove(self, job: str) -> None:
        for client, jobs in list(self._clients.items()):
            self._keep(client, [one for one in jobs if one.job != job])

    def take(self, most: int) -> list[Part]:
        """The parts of the next call, at most `most` images: the next client's, and others of its kind.

        A client gets a second part when no other has one of the kind. The number of parts is a power of two.
        """
        parts: list[Part] = []
        taken: list[Waiting] = []
        kind: tuple | None = None
        room = 1
        while len(parts) < room:
            before = len(parts)
            for client in self._turns():
                found = self._next(client, kind, most)
                if found is None or len(parts) == room:
                    continue
                waiting, part = found
                kind, room = part.kind, max(1, most // part.count)
                parts.append(part)
                taken.append(waiting)
                waiting.take(part)
            if len(parts) == before:
                break
        kept = largest_power(len(parts)) if parts else 0
        for waiting, part in reversed(list(zip(taken[kept:], parts[kept:], strict=True))):
            waiting.left.insert(0, (part.first, part.first + part.count))
        self._calls += 1
        for waiting in taken[:kept]:
            self._served.pop(waiting.client, None)
            self._served[waiting.client] = self._calls
        while len(self._served) > REMEMBERED:
            self._served.popitem(last=False)
        for client, jobs in list(self._clients.items()):
            self._keep(client, [one for one in jobs if one.left])
        return parts[:kept]

    def order(self) -> list[str]:
        """The jobs in the order in which they are begun, as far as it is known."""
        turns = [
            (number, turn, one.job)
            for turn, client in enumerate(self._turns())
            for number, one in enumerate(self._clients[client])
        ]
        return [job for _, _, job in sorted(turns)]

    def images(self) -> int:
        """Candidates that wait."""
        return sum(stop - start for jobs in self._clients.values() for one in jobs for start, stop in one.left)

    def _turns(self) -> list[str]:
        """The clients with jobs, those first who were served longest ago."""
        return sorted(self._clients, key=lambda client: self._served.get(client, 0))

    def _next(self, client: str, kind: tuple | None, most: int) -> tuple[Waiting, Part] | None:
        """The client's first part of that kind, or of any."""
        for waiting in self._clients[client]:
            if waiting.left:
                part = waiting.part(most)
                if kind in (None, part.kind):
                    return waiting, part
        return None

    def _keep(self, client: str, jobs: list[Waiting]) -> None:
        if jobs:
            self._clients[client] = jobs
        else:
            del self._clients[client]


def largest_power(count: int) -> int:
    """The largest power of two that is no larger."""
    return 1 << (count.bit_length() - 1)
