"""The same worker, which takes over the jobs of a dead one after two seconds instead of an hour."""

from jobs import app

app.conf.broker_transport_options = {
    "visibility_timeout": 2,
    # kombu looks every tenth time only.
    "unacked_restore_interval": 0.1,
    "unacked_restore_throttle": 1,
}
