"""A worker whose task writes down when it starts and when it ends, so that nothing can be lost or doubled unseen."""

import os
import signal
import time
from pathlib import Path

from backburner.queue import Celery

app = Celery("ledger")
app.conf.broker_transport_options = {
    "lease": float(os.environ.get("LEASE", "2")),
    "watchdog": float(os.environ.get("WATCHDOG", "60")),
    "max_deliveries": int(os.environ.get("MAX_DELIVERIES", "1000")),  # workers are killed for no fault of their jobs
}
app.conf.worker_soft_shutdown_timeout = float(os.environ.get("SOFT", "5"))
app.conf.worker_prefetch_multiplier = int(os.environ.get("PREFETCH", "4"))


@app.task(name="work", ignore_result=True)
def work(path, seconds):
    note(path, "start")
    time.sleep(seconds)
    note(path, "end")


@app.task(name="hold", ignore_result=True)
def hold(path, released):
    note(path, "start")
    while not Path(released).exists():
        time.sleep(0.05)
    note(path, "end")


@app.task(name="again", bind=True, ignore_result=True)
def again(self, path, countdown):
    note(path, "start")
    if not self.request.retries:
        raise self.retry(countdown=countdown)
    note(path, "end")


@app.task(name="die")
def die(path):
    note(path, "start")
    os._exit(1)


if os.environ.get("KNOWS_NEW"):

    @app.task(name="new")
    def new(number):
        return number + 1


def note(path, what):
    with Path(path).open("a") as book:
        # Of the machine, for a test may have put Python's clock wrong.
        book.write(f"{what} {os.getpid()} {time.clock_gettime(time.CLOCK_REALTIME)}\n")


def hang(*_):
    note(os.environ["HANGS"], "start")
    while Path(os.environ["HANGS"]).exists():
        time.sleep(0.05)


if "HANGS" in os.environ:
    signal.signal(signal.SIGUSR2, hang)
