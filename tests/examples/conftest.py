"""What the examples share: a way to ask over HTTP, and to follow a job until it has ended."""

from collections.abc import Callable
from typing import Any

import httpx2
import pytest


@pytest.fixture(scope="session")
def states_of(eventually: Callable[..., Any]) -> Callable[[httpx2.Client, str], list[dict[str, Any]]]:
    """Follow a job at its address until it ends: each answer whose state differs from the one before."""

    def follow(client: httpx2.Client, url: str) -> list[dict[str, Any]]:
        seen: list[dict[str, Any]] = []

        def ended() -> bool:
            job = client.get(url).raise_for_status().json()
            if not seen or seen[-1]["state"] != job["state"]:
                seen.append(job)
            return job["state"] in {"SUCCESS", "FAILURE"}

        eventually(ended, timeout=20)
        return seen

    return follow


@pytest.fixture(scope="session")
def answers() -> Callable[[str], bool]:
    """Whether a web server takes requests at an address yet, whatever it answers."""

    def asked(url: str) -> bool:
        try:
            httpx2.get(url, timeout=2)
        except httpx2.TransportError:
            return False
        return True

    return asked
