"""How does `dalle-mini serve` stand many clients?

    python benchmarks/serving.py                            # 64 clients for 2 minutes, then up to 1,000 requests
    python benchmarks/serving.py --clients 8 --seconds 10 --requests 50 --json

A server of its own on loopback, with the shipped model. Clients ask for one picture each, again and again. Then the
same pictures are drawn by `generate` in another process. Waits are seconds from the request to the answer. Every shape
of a call is drawn before the clock starts.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil

PROMPTS = ("a red apple", "a small snail", "a blue car", "a cat under a rainbow", "a house by the sea")
SHAPES = (1, 2, 4, 8, 16)  # images of a call on a CPU
STREAMS = 7
GENERATE = """
import sys, time
from dalle_mini import DalleMini
from dalle_mini.runtime.compilation import keep_compiled
keep_compiled()
pipe, prompts, candidates = DalleMini.from_pretrained(), sys.argv[2:], int(sys.argv[1])
def drawn():
    start = time.perf_counter()
    pipe.generate(prompts, candidates=candidates, keep=1)
    return time.perf_counter() - start
drawn()
print(len(prompts) / min(drawn() for _ in range(2)))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--clients", type=int, default=64)
    add("--seconds", type=float, default=120.0, help="of the load")
    add("--requests", type=int, default=1000, help="after which memory is compared with that after a fifth of them")
    add("--candidates", type=int, default=1, help="of each picture")
    add("--json", action="store_true", help="print all figures as one JSON object last")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measured(args, Path(folder)))
    found["generate_per_second"] = generated(args)
    found["of_generate"] = found["pictures_per_second"] / found["generate_per_second"]
    for name, value in found.items():
        print(f"| {name.replace('_', ' ')} | {value if isinstance(value, int) else round(value, 3)} |")
    if args.json:
        print(json.dumps(found))
    return 0


async def measured(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    words = ["serve", "--port", str(port), "--folder", str(folder / "served"), "--per-minute", "0"]
    words += ["--queue", str(2 * args.clients)]  # of which an address may have half
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([sys.executable, "-m", "dalle_mini", *words], stderr=log, env=os.environ)
    try:
        limits = httpx.Limits(max_connections=None)
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits, trust_env=False) as client:
            return await Load(args, client, psutil.Process(server.pid)).run()
    finally:
        server.terminate()
        server.wait()


class Load:
    """The clients of one server."""

    def __init__(self, args: argparse.Namespace, client: httpx.AsyncClient, server: psutil.Process):
        self.args, self.client, self.server = args, client, server
        self.memory: dict[int, int] = {}
        self.asked = 0

    async def run(self) -> dict[str, float]:
        while not await self.is_ready():
            await asyncio.sleep(0.2)
        for count in (*SHAPES, *SHAPES):
            await asyncio.gather(*(self.ask() for _ in range(2 * count)))
        parts = [await self.streamed() for _ in range(STREAMS)]
        self.asked = 0
        start = time.perf_counter()
        loops = await asyncio.gather(*(self.loop(start) for _ in range(self.args.clients)))
        waits = [wait for loop in loops for wait in loop]
        seconds = time.perf_counter() - start
        answers = await self.burst(4 * self.args.clients)
        while self.asked < self.args.requests:
            await asyncio.gather(*(self.ask() for _ in range(min(self.args.clients, 32))))
        fifth = self.memory[min(self.memory, key=lambda count: abs(count - self.args.requests // 5))]
        refused = sum(status == 429 and bool(retry) for status, retry in answers)
        odd = sum(status not in (200, 429) or (status == 429 and not retry) for status, retry in answers)
        return {
            "requests": len(waits),
            "pictures_per_second": len(waits) / seconds,
            "mean_wait_s": statistics.mean(waits),
            "longest_wait_s": max(waits),
            "longest_by_mean": max(waits) / statistics.mean(waits),
            "refused_with_retry_after": refused,
            "other_answers": odd,
            "first_partial_share": statistics.median(parts),
            "memory_growth": self.server.memory_info().rss / fifth - 1,
        }

    async def is_ready(self) -> bool:
        try:
            return (await self.client.get("/readyz")).status_code == 200
        except httpx.TransportError:
            if not self.server.is_running():
                raise
            return False

    async def ask(self) -> httpx.Response:
        number = self.asked
        self.asked += 1
        body = {"prompt": PROMPTS[number % len(PROMPTS)], "seed": number, "candidates": self.args.candidates}
        answer = await self.client.post("/v1/images/generations", json=body)
        self.memory[number] = self.server.memory_info().rss
        return answer

    async def loop(self, start: float) -> list[float]:
        waits = []
        while time.perf_counter() - start < self.args.seconds:
            clock = time.perf_counter()
            answer = await self.ask()
            answer.raise_for_status()
            waits.append(time.perf_counter() - clock)
        return waits

    async def burst(self, count: int) -> list[tuple[int, str | None]]:
        answers = await asyncio.gather(*(self.ask() for _ in range(count)))
        return [(answer.status_code, answer.headers.get("retry-after")) for answer in answers]

    async def streamed(self) -> float:
        """The part of an unloaded picture's time at which its first partial image has come."""
        job = (await self.client.post("/jobs", json={"prompt": PROMPTS[0], "candidates": 1, "n": 1})).json()["id"]
        begun = first = None
        async with self.client.stream("GET", f"/jobs/{job}/events") as response:
            async for line in response.aiter_lines():
                now = time.perf_counter()
                if line.startswith("data: ") and begun is None and '"running"' in line:
                    begun = now
                if line == "event: partial":
                    first = first or now
        assert begun is not None and first is not None
        return (first - begun) / (time.perf_counter() - begun)


def generated(args: argparse.Namespace) -> float:
    """The pictures that `generate` draws in a second."""
    prompts = [PROMPTS[number % len(PROMPTS)] for number in range(args.clients)]
    words = [sys.executable, "-c", GENERATE, str(args.candidates), *prompts]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    sys.exit(main())
