"""The pool of processes: jobs reach an idle process at once and in one piece, and all that Celery promises holds."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from struct import pack, unpack
from typing import Any

import pytest

from backburner.queue.prefork import in_one_piece
from backburner.redis.embedded import EmbeddedServer
from tests.queue.conftest import MakeApp, StartWorker

WITHOUT_A_LOOP = """
import os, sys
from pathlib import Path
from kombu.asynchronous import Hub, set_event_loop
from backburner.queue import Celery
from backburner.queue.prefork import TaskPool

app, hub = Celery("tests", broker="memory://", backend="cache+memory://"), Hub()
set_event_loop(hub)
pool = TaskPool(1, app=app, threads=False, sched_strategy="fair", initargs=(app, "tests@here"))
pool.start()
pool.register_with_event_loop(hub)
while not pool._pool._all_inqueues:
    hub.run_once()
fifo = Path(sys.argv[1]) / "fifo"
os.mkfifo(fifo)
pool.on_apply(os.system, (f"echo begun > '{fifo}'",))
print(fifo.read_text())
pool.terminate()
"""


def write(send: Any, body: bytes) -> None:
    """As Celery does."""
    for piece in (memoryview(pack(">I", len(body))), memoryview(body)):
        sent = 0
        while sent < len(piece):
            sent += send(piece, sent)


@pytest.mark.parametrize("most", [1, 3, 4, 5, 100, 1 << 20])
def test_what_is_written_is_the_same_however_little_the_pipe_takes(most: int) -> None:
    written, calls = bytearray(), 0

    def send(buffer: Any, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            return 0
        piece = buffer[offset : offset + most]
        written.extend(piece)
        return len(piece)

    bodies = [os.urandom(size) for size in (5, 6, 4096, 70_000, 17)]
    joined = in_one_piece(send)
    for body in bodies:
        write(joined, body)
    for body in bodies:
        (length,) = unpack(">I", written[:4])
        assert (length, written[4 : 4 + length]) == (len(body), body)
        del written[: 4 + length]
    assert not written


def test_a_job_is_one_write_and_none_is_lost_when_the_pipe_is_full() -> None:
    refusals, written = [BlockingIOError(), BlockingIOError()], []

    def send(buffer: Any, _offset: int) -> int:
        if refusals:
            raise refusals.pop()
        written.append(bytes(buffer))
        return len(buffer)

    joined, header = in_one_piece(send), pack(">I", 9)
    assert joined(memoryview(header), 0) == 4
    for _ in range(2):
        with pytest.raises(BlockingIOError):
            joined(memoryview(b"a message"), 0)
    assert joined(memoryview(b"a message"), 0) == 9
    assert written == [header + b"a message"]


@pytest.mark.slow
def test_an_idle_process_has_a_job_before_the_event_loop_comes_round(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_A_LOOP, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout.strip() == "begun", done.stderr


@pytest.mark.slow
def test_jobs_of_any_size_are_done_while_processes_come_and_go(
    own_server: EmbeddedServer, make_app: MakeApp, start_worker: StartWorker
) -> None:
    app = make_app(own_server.url)
    with start_worker(own_server.url, "--pool=prefork -c 3 --max-tasks-per-child=40") as worker:
        stats = app.control.inspect(timeout=5).stats()
        assert [each["pool"]["implementation"] for each in stats.values()] == ["backburner.queue.prefork:TaskPool"]
        texts = ["x" * (size % 7 * 30_000) for size in range(300)]
        jobs = app.tasks["add"].delay_many([(text, str(number)) for number, text in enumerate(texts)])
        found = [job.get(timeout=60) for job in jobs]
        assert found == [f"{text}{number}" for number, text in enumerate(texts)]
        processes = Counter(job.get(timeout=30) for job in app.tasks["whoami"].delay_many([()] * 200))
        assert len(processes) > 3, "some ended after 40 jobs"
        assert max(processes.values()) <= 40
        assert "Traceback" not in worker.output
