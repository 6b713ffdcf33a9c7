"""Tasks without a web application, to try from an interactive session: ``python -i task.py``."""

import time

from backburner import Celery

app = Celery("task")


@app.task
def add(x: float, y: float) -> float:
    return x + y


@app.task
def divide(x: float, y: float) -> float:
    time.sleep(1)  # stands for work that takes long
    return x / y
