"""Parsers that hand push messages (RESP3) to whoever reads the connection, instead of to handlers of redis-py's."""

from typing import Any

import redis.asyncio.connection
import redis.connection

__all__ = ["AsyncPushParser", "PushParser"]


class PushParser(redis.connection.DefaultParser):  # type: ignore[misc, valid-type]  # redis-py has no types for it
    """For blocking connections: ``parser_class=PushParser``, and read with ``push_request=True``."""

    def handle_push_response(self, response: Any, **_: Any) -> Any:
        return response


class AsyncPushParser(redis.asyncio.connection.DefaultParser):  # type: ignore[misc, valid-type]  # as above
    """As `PushParser`, for asyncio."""

    async def handle_push_response(self, response: Any, **_: Any) -> Any:
        return response
