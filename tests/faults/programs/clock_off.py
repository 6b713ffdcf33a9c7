"""The ledger's worker on a machine whose clock is off by HOURS, as far as Celery and we look at it."""

import os
import time
from datetime import timedelta

OFF = 3600 * float(os.environ["HOURS"])
real = time.time
time.time = lambda: real() + OFF

from ledger import app  # noqa: E402  # with the wrong clock

now = app.now
app.now = lambda: now() + timedelta(seconds=OFF)
