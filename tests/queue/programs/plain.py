"""A Celery project that uses the transport and nothing else of Backburner."""

import os
import time

from celery import Celery

app = Celery("plain", broker=os.environ["PLAIN_URL"], backend=os.environ["PLAIN_URL"])
app.conf.broker_transport = "backburner.queue.transport:Transport"
app.conf.broker_transport_options = {"lease": 2}
app.conf.broker_connection_retry_on_startup = True
app.conf.task_acks_late = app.conf.task_reject_on_worker_lost = app.conf.task_track_started = True


@app.task
def double(number):
    return 2 * number


@app.task
def slow(seconds):
    time.sleep(seconds)
    return seconds
