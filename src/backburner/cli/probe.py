"""Checks whether an HTTP server answers. Without a client library, so that `backburner dev` starts quickly."""

import asyncio
from urllib.parse import urlsplit

_PATIENCE = 2.0
_POLL = 0.05


async def http_status(url: str) -> int | None:
    """The status of a GET, or None if there is no answer in two seconds."""
    parts = urlsplit(url)
    path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    writer = None
    try:
        async with asyncio.timeout(_PATIENCE):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
            answer = await reader.readline()
            await reader.read()
        return int(answer.split()[1])
    except (OSError, TimeoutError, ValueError, IndexError):
        return None
    finally:
        if writer is not None:
            writer.close()


async def until_it_answers(url: str) -> None:
    """Wait for the first answer, with any status."""
    while await http_status(url) is None:  # noqa: ASYNC110  # nobody would set an event
        await asyncio.sleep(_POLL)
