"""What goes wrong in a trial: of the workers, of the server, of the way between them."""

import random
import time
from collections.abc import Callable

from tests.faults.chaos.trial import LEASE, Trial

NOTICED = 2.5
"""Seconds until a lost connection is replaced at the latest: Celery waits for two when its first attempt fails."""


def kill_worker(trial: Trial) -> None:
    if worker := trial.fleet.a_busy_one():
        trial.fleet.kill(worker)


def kill_parent(trial: Trial) -> None:
    if worker := trial.fleet.a_busy_one():
        trial.fleet.kill_parent(worker)


def kill_child(trial: Trial) -> None:
    if worker := trial.fleet.a_busy_one():
        trial.fleet.kill_child(worker)


def pause_and_kill(trial: Trial) -> None:
    if worker := trial.fleet.a_busy_one():
        trial.fleet.pause(worker)
        trial.later(random.uniform(0, 1.5 * LEASE), lambda: trial.fleet.end(worker))


def restart_server(trial: Trial) -> None:
    if _too_soon(trial):
        return
    trial.history.faults += 1
    trial.restart(away=random.uniform(0, 0.5))


def cut_connections(trial: Trial) -> None:
    trial.history.faults += 1
    trial.proxy.reset()
    trial.out_of_reach(NOTICED)


def silence_connections(trial: Trial) -> None:
    """Half-open ones: their other end is gone, and nobody says so."""
    if _too_soon(trial):
        return
    trial.history.faults += 1
    trial.proxy.silence()
    trial.out_of_reach(NOTICED)


def _too_soon(trial: Trial) -> bool:
    """Whether the server was away lately. Each time the dead get one more lease, for the living may be late too."""
    last, now = trial.away_at, time.monotonic()
    if now - last < 4 * LEASE:
        return True
    trial.away_at = now
    return False


def flush_scripts(trial: Trial) -> None:
    trial.history.faults += 1
    with trial.client() as client:
        client.script_flush()


def fill_memory(trial: Trial) -> None:
    """The server refuses whatever adds anything, for half a second."""
    trial.history.faults += 1
    with trial.client() as client:
        client.config_set("maxmemory", 1)

    def free() -> None:
        with trial.client() as client:
            client.config_set("maxmemory", 0)

    trial.later(0.5, free)


ALL: dict[Callable[[Trial], None], int] = {
    kill_worker: 12,
    kill_parent: 4,
    kill_child: 4,
    pause_and_kill: 4,
    flush_scripts: 1,
    fill_memory: 1,
    cut_connections: 1,
    silence_connections: 1,
    restart_server: 1,
}
"""How often each happens, in relation to the others."""
