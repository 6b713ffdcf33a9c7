"""A worker that ends because of a wrong setting says so in one line, where Celery logs two screens of traceback."""

import logging

from backburner.errors import ConfigError


def install() -> None:
    """See above. Doing it again changes nothing."""
    logging.getLogger("celery.worker").addFilter(_in_one_line)


def _in_one_line(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, ConfigError):
        record.msg, record.args, record.exc_info = "the worker ends: %s", (str(error),), None
    return True
