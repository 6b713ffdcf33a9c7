"""Workers whose tasks write down when they start and when they end; ``tests/faults/ledger.py`` reads it.

With STOCK it is stock Celery, told what it needs to do its best: to acknowledge late, and to give back after LEASE.
"""

import asyncio
import os
import signal
import time
from pathlib import Path

import celery

from backburner.queue import Celery

LEASE = float(os.environ.get("LEASE", "2"))

if os.environ.get("STOCK"):
    url = os.environ["REDIS_URL"]
    app = celery.Celery("ledger", broker=url, set_as_current=False)
    app.conf.update(
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "visibility_timeout": LEASE,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
            "socket_timeout": 5,
        },
    )
else:
    app = Celery("ledger")
    app.conf.broker_transport_options = {
        "lease": LEASE,
        "watchdog": float(os.environ.get("WATCHDOG", "60")),
        # They are killed for no fault of their jobs.
        "max_deliveries": int(os.environ.get("MAX_DELIVERIES", "1000000")),
    }
    app.conf.worker_soft_shutdown_timeout = float(os.environ.get("SOFT", "5"))
    app.conf.worker_cancel_long_running_tasks_on_connection_loss = "CANCELS" in os.environ
app.conf.worker_prefetch_multiplier = int(os.environ.get("PREFETCH", "4"))


@app.task(name="work", ignore_result=True)
def work(job, seconds):
    note("start", job)
    time.sleep(seconds)
    note("end", job)


@app.task(name="awork", ignore_result=True)
async def awork(job, seconds):
    note("start", job)
    await asyncio.sleep(seconds)
    note("end", job)


@app.task(name="burn", ignore_result=True)
def burn(job, seconds):
    note("start", job)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    note("end", job)


@app.task(name="hold", ignore_result=True)
def hold(job, released):
    note("start", job)
    while not Path(released).exists():
        time.sleep(0.05)
    note("end", job)


@app.task(name="again", bind=True, ignore_result=True)
def again(self, job, countdown):
    note("start", job)
    if not self.request.retries:
        raise self.retry(countdown=countdown)
    note("end", job)


@app.task(name="die")
def die(job):
    note("start", job)
    os._exit(1)


if os.environ.get("KNOWS_NEW"):

    @app.task(name="new")
    def new(number):
        return number + 1


def note(what, job):
    line = f"{what} {job} {os.environ.get('WORKER', '?')} {os.getpid()} {time.monotonic():.6f}\n"
    book = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND)
    os.write(book, line.encode())
    os.close(book)


def hang(*_):
    hangs = Path(os.environ["HANGS"])
    hangs.write_text("hangs")
    while hangs.exists():
        time.sleep(0.05)


if "HANGS" in os.environ:
    signal.signal(signal.SIGUSR2, hang)
