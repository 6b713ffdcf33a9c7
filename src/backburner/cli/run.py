"""One run of a project: server, migrations, programs and mail catcher, started and stopped in order."""

import asyncio
import socket
import subprocess
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from backburner.cache import Cache
from backburner.cli import guard, plan
from backburner.cli.home import Home
from backburner.cli.project import Found, Project
from backburner.cli.screen import Row
from backburner.cli.service import Crashes, Log, Program, Service, run_to_the_end
from backburner.errors import ConfigError, StoreUnavailable
from backburner.ports import claim, listen
from backburner.redis.client import connect
from backburner.redis.embedded import EmbeddedServer
from backburner.redis.url import ServerURL, mask_password
from backburner.settings import Settings

if TYPE_CHECKING:
    from backburner.cli.mailserver import MailServer

_SERVER_LOOK = 0.2  # seconds between checks whether the embedded server is alive
_SERVER_PATIENCE = 1.0  # seconds for a server that the settings name

# Seconds after the signal to stop. With the mail catcher and the server, everything has ended within 5.
_FRONT_UNTIL = 0.8
_WORKER_UNTIL = 2.6
_KILL_AT = 4.2


class Run:
    """What `backburner dev` and its check have in common. Always call `stop`, even if starting failed."""

    def __init__(self, project: Project, home: Home, settings: Settings, ports: plan.Ports, log: Log) -> None:
        self.project = project
        self.settings = settings
        self.services: list[Service] = []
        self._rows: list[Row] = []
        self.notes: list[str] = []
        self.hints: list[str] = []
        self.api_url: str | None = None
        self.environment: dict[str, str] = {}
        self._home = home
        self._family = home.family.of_run()
        self._ports = ports
        self._log = log
        self._server: EmbeddedServer | None = None
        self._keeping_server: asyncio.Task[None] | None = None
        self._claims: list[socket.socket] = []
        self._mail_sockets: tuple[socket.socket, socket.socket] | None = None
        self._mail: MailServer | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    async def reach_server(self) -> None:
        """Start the embedded server, or check that the one named in the settings answers.

        Raises:
            StoreUnavailable: it does not answer.
            ConfigError: there is no embedded server for this machine, or the cache's settings are invalid.
        """
        Cache.from_settings(self.settings)  # if this fails, no program could start
        if self.settings.names_a_server:
            await self._ask_server()
            self._row("server", self.server, "yours, named in the settings")
            return
        wanted = self.settings.redis_port if self._ports.server else None
        self._server = self._home.server(wanted).start()
        self._keeping_server = asyncio.create_task(self._keep_running(self._server))
        self.settings = Settings(redis_url=self._server.url)
        self._note_if_moved("Valkey", wanted, self._server.port)
        kept = self._home.directory.relative_to(self.project.directory) / "valkey"
        self._row("valkey", self._server.url, f"{'taken over' if self._server.adopted else 'embedded'}, data in {kept}")

    async def prepare(self, extra: Mapping[str, str], *, migrate: bool = True) -> bool:
        """Take the ports for mail, and migrate the database. Returns whether the migrations succeeded.

        Args:
            extra: further variables for the programs' environment.
            migrate: whether the database may be changed.
        """
        self._guard = guard.post(self._family)
        self.environment = plan.environment(
            {"REDIS_URL": self.settings.redis_url, "SMTP_URL": self._address_for_mail(), **extra}
        )
        if self.project.celery is not None:
            # Slow to start and independent of the others, so it goes first.
            self._start_flower(self.project.celery)
        if not (migrate and self.project.has_migrations):
            return True
        return await self.once(plan.migrations()) == 0

    async def start_programs(self, worker_options: Sequence[str] = (), *, reload: bool = True) -> None:
        """Start all programs that are kept running."""
        if self.project.app is not None:
            port = self._port("the API", self._ports.api, self._ports.host)
            self.api_url = plan.local_url(self._ports.host, port)
            self._start(plan.api(self.project.app, self._ports.host, port, reload=reload))
            self._row("api", self.api_url, f"{self.project.app.name}, reloads; documentation at /docs")
        if self.project.celery is not None:
            reloads = "reloads" if self.project.celery.reloads else "does not reload: that needs backburner.Celery"
            self._start(plan.worker(self.project.celery, worker_options, reload=reload))
            self._row("worker", self.project.celery.name, f"does the jobs, {reloads}")
            self._start(plan.beat(self.project.celery, self._home.directory / "beat-schedule", reload=reload))
            self._row("beat", self.project.celery.name, "enqueues periodic jobs, reloads")
        self._say_what_was_found()
        await self._catch_mail()

    @property
    def server(self) -> str:
        """The server's URL, fit to be shown."""
        return ServerURL.parse(self.settings.redis_url).masked

    async def once(self, program: Program) -> int:
        """Run a program that ends by itself. Returns its exit code."""
        return await run_to_the_end(program, self.project.directory, self.environment, self._family, self._show)

    @property
    def rows(self) -> list[Row]:
        """The rows of the screen, the most used addresses first."""
        order = ("api", "flower", "mail", "worker", "beat", "valkey", "server")
        return sorted(self._rows, key=lambda row: order.index(row.name))

    async def stop(self) -> None:
        """Stop everything in order: first what enqueues, then what works, then the server. May be called again."""
        if self._keeping_server is not None:
            self._keeping_server.cancel()
        clock = asyncio.get_running_loop().time
        began = clock()
        workers = [service for service in self.services if service.name == "worker"]
        front = [service for service in self.services if service.name != "worker"]
        for service in sorted(front, key=lambda service: service.name):
            service.stop()
        await _ended(front, began + _FRONT_UNTIL - clock())
        for worker in workers:
            worker.stop()
        if not await _ended(workers, began + _WORKER_UNTIL - clock()):
            for worker in workers:
                worker.hurry()
        if not await _ended(self.services, began + _KILL_AT - clock()):
            self.kill()
            await _ended(self.services, 1)
        self._family.end(patience=0)  # processes that outlived their parent
        mail, self._mail = self._mail, None
        if mail is not None:
            await mail.stop()
        for taken in (*self._claims, *(self._mail_sockets or ())):
            taken.close()
        sentry, self._guard = self._guard, None
        if sentry is not None:
            sentry.communicate()
        if self._server is not None:
            self._server.stop()

    def kill(self) -> None:
        """End all programs at once. The server is left to `stop`: it holds data."""
        for service in self.services:
            service.kill()
        self._family.kill()

    async def _keep_running(self, server: EmbeddedServer) -> None:
        """Restart the server when it has crashed, at the address where the programs expect it."""
        port, crashes = server.port, Crashes()
        while True:
            await asyncio.sleep(_SERVER_LOOK)
            if server.alive:
                continue
            pause = crashes.pause_after("ended", partial(self._log, "valkey"), server.last_log_lines().splitlines)
            if pause is None:
                return
            await asyncio.sleep(pause)
            try:
                server.restart()
            except ConfigError as error:
                self._log("valkey", f"ERROR: {error}")
                continue
            if server.port != port:
                self._log("valkey", f"ERROR: port {port} was taken meanwhile, start again: it is at {server.port} now")
                return
            self._log("valkey", "it runs again, with what it had on disk")

    async def _ask_server(self) -> None:
        client = connect(self.settings.redis_url, timeout=_SERVER_PATIENCE)
        try:
            await asyncio.wait_for(asyncio.to_thread(client.ping), 2 * _SERVER_PATIENCE)
        except (RedisError, OSError) as error:
            raise StoreUnavailable(
                f"{self.server} does not answer ({mask_password(str(error))}): start that server, or remove REDIS_URL "
                "and REDIS_HOST from the environment and from .env to use the embedded one"
            ) from error
        finally:
            client.close()

    def _address_for_mail(self) -> str:
        if "smtp_url" in self.settings.model_fields_set:
            self._row(
                "mail", mask_password(self.settings.smtp_url), "yours, named in the settings: mail is really sent"
            )
            return self.settings.smtp_url
        self._mail_sockets = listen(self._ports.smtp), listen(self._ports.mail)
        smtp, page = (listening.getsockname()[1] for listening in self._mail_sockets)
        self._note_if_moved("the mail catcher's SMTP", self._ports.smtp, smtp)
        self._note_if_moved("the mail page", self._ports.mail, page)
        url = f"smtp://127.0.0.1:{smtp}"
        self._row("mail", f"http://127.0.0.1:{page}", f"shows what is sent to {url}")
        return url

    async def _catch_mail(self) -> None:
        if self._mail_sockets is None:
            return
        # Imported late: it takes a third of a second, in which the programs are already starting.
        from backburner.cli.mailserver import MailServer

        self._mail = MailServer(self._home.directory / "mail", *self._mail_sockets)
        await self._mail.start()

    def _start_flower(self, celery: Found) -> None:
        port = self._port("Flower", self._ports.flower)
        self._start(plan.flower(celery, port))
        self._row("flower", f"http://127.0.0.1:{port}", "workers and jobs")

    def _start(self, program: Program) -> None:
        directory = self.project.directory
        self.services.append(Service(program, directory, self.environment, self._family, self._show))

    def _port(self, whose: str, wanted: int | None, host: str = "127.0.0.1") -> int:
        self._claims.append(claim(wanted, host))
        port: int = self._claims[-1].getsockname()[1]
        self._note_if_moved(whose, wanted, port)
        return port

    def _note_if_moved(self, whose: str, wanted: int | None, port: int) -> None:
        if wanted is not None and port != wanted:
            self.notes.append(f"Port {wanted} is busy: {whose} is at {port}.")

    def _say_what_was_found(self) -> None:
        project = self.project
        if project.app is None:
            self.hints.append('No web application found. Yours: [tool.backburner] app = "package.module:app"')
        if project.celery is None:
            self.hints.append(
                "No Celery application found, so there is no worker. Yours: [tool.backburner] "
                'celery = "package.module:app"'
            )
        guessed = {"app": project.app, "celery": project.celery}
        pins = [f'{key} = "{found.name}"' for key, found in guessed.items() if found and not found.pinned]
        if pins:
            self.hints.append(f"Found by looking. To pin it, in pyproject.toml: [tool.backburner] {'  '.join(pins)}")

    def _row(self, name: str, where: str, what: str) -> None:
        self._rows.append(Row(name, where, what))

    def _show(self, name: str, line: str) -> None:
        if plan.PROBE_PATH not in line:
            self._log(name, line)


async def _ended(services: list[Service], patience: float) -> bool:
    return all(await asyncio.gather(*(service.ended(patience) for service in services)))
