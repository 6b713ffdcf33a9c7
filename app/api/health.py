"""The health of the application, reported truthfully and within a short time."""

import asyncio
import logging
from collections.abc import Callable

from fastapi import APIRouter, Response
from sqlalchemy import text

from app.core.cache import cache
from app.core.celery_app import celery_app
from app.core.database import engine
from app.schemas import Health
from backburner.cache import Cache, Context

router = APIRouter(tags=["health"])

log = logging.getLogger("app.health")

PATIENCE = 1.5
"""Seconds that each part has to answer."""

_looks = Cache("memory://")
"""Keeps nothing, but gives one answer to all who ask while somebody looks: a crowd would wait too long for threads."""


@router.get("/health", summary="How the parts are", responses={503: {"model": Health, "description": "No database"}})
async def read_health(response: Response) -> Health:
    """The state of each part. Without the database the status is 503; without the others, books can still be read."""
    health: Health = await _looks.aremember("health", callback=_look)
    if health.status == "down":
        response.status_code = 503
    return health


async def _look(ctx: Context) -> Health:
    ctx.skip()
    database, cached, queue = await asyncio.gather(
        _ask("database", _database), _ask("cache", _cache), _ask("queue", _queue)
    )
    working = "ok" if cached == queue == "ok" else "degraded"
    status = working if database == "ok" else "down"
    return Health(status=status, database=database, cache=cached, queue=queue)


async def _ask(name: str, question: Callable[[], str]) -> str:
    try:
        return await asyncio.wait_for(asyncio.to_thread(question), PATIENCE)
    except TimeoutError:
        return f"no answer within {PATIENCE} s"
    except Exception as error:  # noqa: BLE001  # whatever is wrong with a part is the answer
        log.warning("The %s does not answer: %s", name, error)
        return "does not answer"


def _database() -> str:
    with engine().connect() as connection:
        connection.execute(text("SELECT 1"))
    return "ok"


def _cache() -> str:
    return "ok" if cache().put("health", "ok", ttl=10) else "does not answer"


def _queue() -> str:
    return "ok" if celery_app.control.ping(timeout=1.0, limit=1) else "no worker answers"
