"""`backburner dev --check`: does everything start, does a job run, is a request answered, does everything stop?

It works on free ports with a scratch directory and a scratch SQLite database, so it may run beside a `backburner dev`.
A server named in the settings is used as it is; the check's worker then consumes a queue of its own, so that it takes
nobody else's jobs.
"""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Awaitable
from itertools import islice
from pathlib import Path

from redis.exceptions import RedisError

from backburner.cache.keys import Keyspace
from backburner.cli import plan
from backburner.cli.dev import errors_told, until_signalled
from backburner.cli.home import Home
from backburner.cli.probe import http_status
from backburner.cli.project import Found, Project
from backburner.cli.run import Run
from backburner.cli.screen import Screen
from backburner.cli.service import Service
from backburner.errors import BackburnerError
from backburner.redis.client import connect
from backburner.redis.url import for_prefix
from backburner.settings import Settings

_WITHIN = 12.5  # seconds for everything except stopping, so that the check takes at most 15
_QUEUE = "backburner-check"
_LINES_SHOWN = 30
_KEYS_COUNTED = 10_000


def check(*, migrate: bool) -> int:
    """Check the project in the current directory. Returns the exit code.

    Args:
        migrate: whether to migrate also a database other than the scratch one.
    """
    screen = Screen()
    with errors_told(screen) as outcome:
        project = Project.read(Path.cwd())
        settings = Settings()
        home = Home.of_check(project.directory)
        with home.claimed():
            home.family.end(patience=0)
            home.empty()
            check = _Check(screen, project, home, settings, migrate=migrate)
            outcome.code = asyncio.run(until_signalled(screen, check.run, check.work()))
            home.empty()
    return outcome.code


class _Failed(BackburnerError):
    """A step failed; the message says what happened instead."""


class _Check:
    def __init__(self, screen: Screen, project: Project, home: Home, settings: Settings, *, migrate: bool) -> None:
        self.run = Run(project, home, settings, plan.Ports.any_free(), self._log)
        self._screen = screen
        self._project = project
        self._home = home
        self._migrate = migrate
        self._on_shared_server = settings.names_a_server or "celery_broker_url" in settings.model_fields_set
        self._said: defaultdict[str, deque[str]] = defaultdict(lambda: deque(maxlen=_LINES_SHOWN))
        self._step = ""
        self._step_began = 0.0

    async def work(self) -> int:
        """Take all steps, up to the first that fails."""
        try:
            async with asyncio.timeout(_WITHIN):
                await self._steps()
        except (BackburnerError, TimeoutError) as error:
            self._tell(str(error) or f"not done {_WITHIN} s after the start", good=False)
            for line in self._said[self._step]:
                self._screen.log(self._step, line)
            return 1
        finally:
            self._step, self._step_began = "stop", time.monotonic()
            await self.run.stop()
        self._tell("everything has ended", good=True)
        return 0

    async def _steps(self) -> None:
        project = self._project
        await self._take("server", self._server())
        await self._take("alembic", self._migrations())
        options = ("--concurrency=1", *(("-Q", _QUEUE) if self._on_shared_server else ()))
        await self.run.start_programs(options, reload=False)
        began = time.monotonic()
        for service in self.run.services:
            await self._take(service.name, self._ready(service), began)
        if project.celery is not None:
            await self._take("job", self._job(project.celery))
        if self.run.api_url is not None:
            await self._take("request", self._request(self.run.api_url + (project.check_path or "/")))

    async def _take(self, step: str, doing: Awaitable[str], began: float | None = None) -> None:
        self._step, self._step_began = step, began or time.monotonic()
        self._tell(await doing, good=True)

    def _tell(self, text: str, *, good: bool) -> None:
        self._screen.step(self._step, text, time.monotonic() - self._step_began, good=good)

    async def _server(self) -> str:
        await self.run.reach_server()
        return f"{self.run.server} answers"

    async def _migrations(self) -> str:
        database = self.run.settings.database_url
        own = database.startswith("sqlite")
        # Four slashes: the path is absolute.
        scratch = f"{database.partition(':')[0]}:///{self._home.directory.absolute()}/app.db"
        migrate = own or self._migrate
        if not await self.run.prepare({"DATABASE_URL": scratch} if own else {}, migrate=migrate):
            raise _Failed("the migrations failed:")
        if not self._project.has_migrations:
            return "no alembic.ini: nothing to migrate"
        if not migrate:
            return "the database of DATABASE_URL is left as it is; --migrate brings it up to date"
        return "the database is up to date"

    async def _ready(self, service: Service) -> str:
        await service.settled()
        if not service.ready.is_set():
            raise _Failed("it crashed again and again:")
        return "ready"

    async def _job(self, celery: Found) -> str:
        if await self.run.once(plan.ping(celery, _QUEUE if self._on_shared_server else None)) != 0:
            raise _Failed("the worker did not do it:")
        return self._said["job"][-1]

    async def _request(self, url: str) -> str:
        statuses = [await http_status(url) for _ in range(2)]
        path = self._project.check_path or "/"
        if not all(status is not None and status < 400 for status in statuses):
            raise _Failed(
                f"GET {path} answers {statuses[0]}, then {statuses[1]}; name a path that answers, best one that is "
                'cached, in pyproject.toml: [tool.backburner] check = "/path"'
            )
        keys = await asyncio.to_thread(self._cached_keys)
        if keys == 0 and self._project.check_path is not None:
            raise _Failed(f"GET {path} answers, but left nothing under {self.run.settings.cache_prefix!r} in the cache")
        return (
            f"GET {path} answers {statuses[0]}, {keys} keys in the cache"
            if keys
            else f"GET {path} answers {statuses[0]}"
        )

    def _cached_keys(self) -> int | None:
        """How many keys the cache has in the server; None if it is elsewhere."""
        settings = self.run.settings
        if settings.cache_url.startswith("memory://"):
            return None
        pattern = Keyspace(settings.cache_prefix).pattern
        client = connect(for_prefix(settings.cache_url, settings.cache_prefix), timeout=1)
        try:
            return sum(1 for _ in islice(client.scan_iter(match=pattern, count=1000), _KEYS_COUNTED))
        except RedisError as error:
            raise _Failed(f"the cache's server does not answer: {error}") from error
        finally:
            client.close()

    def _log(self, name: str, line: str) -> None:
        self._said[name].append(line)
