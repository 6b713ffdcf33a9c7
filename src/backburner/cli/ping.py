"""``python -m backburner.cli.ping APP [QUEUE]``: have a project's worker do one job, and report the outcome.

Every `backburner.Celery` knows the job ``backburner.ping``. A stock Celery application does not, so its worker is only
pinged.
"""

import sys

from celery.app.utils import find_app

_JOB = "backburner.ping"
_PATIENCE = 8.0


def ping(name: str, queue: str | None) -> str:
    """Have the job done. Returns a description of the outcome."""
    app = find_app(name)
    if _JOB in app.tasks:
        answer = app.send_task(_JOB, queue=queue).get(timeout=_PATIENCE)
        return f"{_JOB} was done and answered {answer!r}"
    if answers := app.control.ping(timeout=_PATIENCE, limit=1):
        return f"{next(iter(answers[0]))} answers; it is a stock Celery, so no job was sent"
    raise SystemExit("no worker answers")


if __name__ == "__main__":
    print(ping(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None))
