"""Optional packages: where one is missing, the error says which extra to install."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["extra"]

_PACKAGES: Final = {
    "celery": {"celery", "kombu", "greenlet", "packaging"},
    "fastapi": {"fastapi", "starlette", "anyio"},
    "dev": {"psutil"},
    "otel": {"opentelemetry"},
    "prometheus": {"prometheus_client"},
}


@contextmanager
def extra(name: str, *, needed_by: str) -> Iterator[None]:
    """Wrap the imports of what an extra installs.

    Raises:
        ModuleNotFoundError: a package of the extra is missing; the message says what to install. For other modules, the
            original error is raised.
    """
    try:
        yield
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package not in _PACKAGES[name]:
            raise
        sentence = f'{needed_by} needs {package}: pip install "backburner[{name}]"'
        raise ModuleNotFoundError(sentence, name=missing.name) from missing
