"""One API process with 1,000 open streams of events, and one in which 1,000 results are awaited: how late is its loop?

    make bench-queue, or: python benchmarks/queue_streams.py [redis://…]

The jobs are not done: this process tells their progress and stores their results, as a worker would. Latency is from
there to the client, through the server and the API. Takes half a minute. Client and server share the machine with the
API, so the figures are an upper bound of what it would show by itself.
"""

import asyncio
import http.client
import json
import os
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import orjson
import redis
from harness import Report, in_units, server

from backburner.ports import free_ports
from backburner.queue import Celery
from backburner.queue.stream import KEPT, stream_key
from backburner.settings import Settings

STREAMS = 1_000
SECONDS = 5
"""For which each job tells its progress, once a second."""
BATCHES = 20
"""So many times a second, a part of the jobs does."""
_REPORT = files("backburner.queue").joinpath("report.lua").read_text("utf-8")


class Api:
    """The process."""

    def __init__(self, url: str) -> None:
        self.port = next(free_ports(None))
        command = f"uvicorn jobs_api:app --port {self.port} --no-access-log --log-level warning --backlog 4096"
        environment = {**os.environ, "BENCH_URL": url}
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command.split()], env=environment, cwd=Path(__file__).parent
        )
        while self.process.poll() is None:
            try:
                self.post("/census")
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise SystemExit("the API did not start; what it printed is above")

    def post(self, path: str, body: Any = None) -> Any:
        """The answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=90)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", path, orjson.dumps(body) if body is not None else None, headers)
        told = json.loads(connection.getresponse().read())
        connection.close()
        return told

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(20)


class Stream:
    """A client of one job's events."""

    def __init__(self, latencies: list[float]) -> None:
        self._latencies = latencies
        self._reading: asyncio.Task[None] | None = None
        self.ready = asyncio.Event()

    async def open(self, port: int, job_id: str) -> None:
        """Connect, and read until closed."""
        reader, self._writer = await asyncio.open_connection("127.0.0.1", port)
        self._writer.write(f"GET /jobs/{job_id}/events HTTP/1.1\r\nHost: api\r\n\r\n".encode())
        self._reading = asyncio.create_task(self._read(reader))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            if line.startswith(b"event: state"):
                self.ready.set()
            if line.startswith(b"data:") and b'"at"' in line:
                self._latencies.append(time.time() - orjson.loads(line[5:])["at"])

    def close(self) -> None:
        """Go away without a word."""
        if self._reading is not None:
            self._reading.cancel()
        self._writer.close()


def tell_progress(celery_app: Celery, ids: list[str]) -> None:
    """As workers do, in one write."""
    backend: Any = celery_app.backend
    line = orjson.dumps({"kind": "progress", "done": 1, "total": 2, "message": "", "at": time.time()})
    with backend.client.pipeline(transaction=False) as pipeline:
        for job_id in ids:
            keys = [stream_key(backend, job_id), backend.get_key_for_task(job_id)]
            pipeline.eval(_REPORT, 2, *keys, KEPT, 3600, "", line)
        pipeline.execute()


async def follow(report: Report, api: Api, celery_app: Celery, ids: list[str]) -> None:
    """The streams: at rest, and with a thousand events a second."""
    latencies: list[float] = []
    streams = [Stream(latencies) for _ in ids]
    began = time.perf_counter()
    memory = api.post("/census")["memory"]
    for stream, job_id in zip(streams, ids, strict=True):
        await stream.open(api.port, job_id)
    async with asyncio.timeout(60):
        await asyncio.gather(*(stream.ready.wait() for stream in streams))
    opened = time.perf_counter() - began
    at_first = await asyncio.to_thread(api.post, "/census")
    await asyncio.sleep(3)
    resting = await asyncio.to_thread(api.post, "/census")
    size = len(ids) // BATCHES
    began = time.perf_counter()
    for number in range(BATCHES * SECONDS):
        await asyncio.sleep(max(0.0, began + number / BATCHES - time.perf_counter()))
        part = number % BATCHES * size
        await asyncio.to_thread(tell_progress, celery_app, ids[part : part + size])
    await asyncio.sleep(0.5)
    busy = await asyncio.to_thread(api.post, "/census")
    for stream in streams:
        stream.close()
    await asyncio.sleep(1)
    after = await asyncio.to_thread(api.post, "/census")
    latencies.sort()
    figures = {
        "opened_in": opened,
        "kilobytes_each": (at_first["memory"] - memory) / 1024 / len(ids),
        "events": len(latencies),
        "events_sent": size * BATCHES * SECONDS,
        "latency_p50": latencies[len(latencies) // 2],
        "latency_p99": latencies[len(latencies) * 99 // 100],
        "processor_share": (busy["processor"] - resting["processor"]) / (SECONDS + 0.5),
        "resting_lag_p99": resting["lag_p99"],
        "busy_lag_p50": busy["lag_p50"],
        "busy_lag_p99": busy["lag_p99"],
        "subscriptions_after": after["subscriptions"],
    }
    report.tell(
        f"{STREAMS:,} streams of events, {size * BATCHES:,} events a second",
        figures,
        f"opened in {opened:.1f} s, {figures['kilobytes_each']:.0f} KB each; {len(latencies):,} of "
        f"{figures['events_sent']:,} events came, p50 {in_units(figures['latency_p50'])}, "
        f"p99 {in_units(figures['latency_p99'])}; loop lag p99 {in_units(figures['resting_lag_p99'])} at rest, "
        f"{in_units(figures['busy_lag_p99'])} with events; processor {figures['processor_share']:.0%}; "
        f"{after['subscriptions']} subscriptions after all had gone",
    )


async def wait(report: Report, api: Api, celery_app: Celery, ids: list[str]) -> None:
    """The results: awaited in one process, stored as fast as one process can."""
    api.post("/census")
    waiting = asyncio.create_task(asyncio.to_thread(api.post, "/results", ids))
    while (resting := await asyncio.to_thread(api.post, "/census"))["subscriptions"] < len(ids):  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    backend: Any = celery_app.backend

    def store() -> float:
        for job_id in ids:
            backend.store_result(job_id, "done", "SUCCESS")
        return time.perf_counter()

    began = time.perf_counter()
    stored = await asyncio.to_thread(store)
    assert await waiting == len(ids)
    done = time.perf_counter()
    busy = await asyncio.to_thread(api.post, "/census")
    figures = {
        "stored_in": stored - began,
        "all_there_after_the_last": done - stored,
        "waiting_lag_p99": resting["lag_p99"],
        "busy_lag_p50": busy["lag_p50"],
        "busy_lag_p99": busy["lag_p99"],
        "busy_lag_most": busy["lag_most"],
    }
    report.tell(
        f"{len(ids):,} results awaited in one process",
        figures,
        f"stored in {in_units(figures['stored_in'])}, all answered {in_units(figures['all_there_after_the_last'])} "
        f"after the last; loop lag p50 {in_units(busy['lag_p50'])}, p99 {in_units(busy['lag_p99'])}, "
        f"at most {in_units(busy['lag_most'])} meanwhile",
    )


async def main() -> None:
    """Everything."""
    with server() as url:
        celery_app = Celery("streams", settings=Settings(redis_url=url), set_as_current=False)
        report = Report("queue_streams", ("celery", "fastapi", "starlette", "uvicorn"))
        api = Api(url)
        try:
            report.told["at rest"] = {"lag_p99": api.post("/census")["lag_p99"]}
            await follow(report, api, celery_app, api.post(f"/many?count={STREAMS}"))
            await wait(report, api, celery_app, api.post(f"/many?count={STREAMS}"))
        finally:
            api.stop()
        with redis.Redis.from_url(url) as client:
            client.flushdb()
        report.write(url)


if __name__ == "__main__":
    asyncio.run(main())
