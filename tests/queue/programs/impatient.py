"""The same worker, which is taken for dead after two seconds instead of half a minute."""

from jobs import app

app.conf.broker_transport_options = {"lease": 2}
