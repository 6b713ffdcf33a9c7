"""A program that knows nothing of Backburner."""

import os

from celery import Celery

app = Celery("stock", broker=os.environ["STOCK_URL"], backend=os.environ["STOCK_URL"])


@app.task
def double(number):
    return 2 * number
