"""What people type from guides, typed in: each file of this folder is a program of theirs, checked by its own asserts.

They run as their authors would run them: in a folder with the guide's ``.env``, against the application, with a real
server, a real worker and real mail.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
from aiosmtpd.controller import Controller

from backburner import Settings
from backburner.redis.embedded import EmbeddedServer
from tests.app.bookstore import Bookstore, Mailbox
from tests.conftest import Eventually
from tests.guide import CELERY, SERVER_AND_CACHE
from tests.processes import environment, free_port

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent


@pytest.fixture(scope="module")
def mailbox() -> Iterator[tuple[Mailbox, int]]:
    """Where the programs' mails arrive, and the port to hand them in at."""
    mailbox, port = Mailbox(), free_port()
    controller = Controller(mailbox, hostname="127.0.0.1", port=port)
    controller.start()
    yield mailbox, port
    controller.stop()


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory,
    mailbox: tuple[Mailbox, int],
    eventually: Eventually,
) -> Iterator[Bookstore]:
    """A folder with the guide's ``.env`` and the programs in it, an empty database, and a server."""
    folder = tmp_path_factory.mktemp("site")
    (folder / ".env").write_text(SERVER_AND_CACHE)
    for program in FOLDER.glob("[!t]*.py"):
        shutil.copy(program, folder)
    with EmbeddedServer(tmp_path_factory.mktemp("site-valkey")) as valkey:
        site = Bookstore(folder, valkey.url, eventually, smtp_port=mailbox[1])
        site.migrate()
        yield site


@pytest.fixture(scope="module")
def site_with_worker(site: Bookstore) -> Iterator[Bookstore]:
    with site.worker():
        yield site


def typed_in(program: str, site: Bookstore) -> str:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:datetime:DeprecationWarning", program],
        cwd=site.directory,
        env=environment(site.environment),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_the_env_file_of_the_guide_loads_as_printed() -> None:
    Path(".env").write_text(SERVER_AND_CACHE)
    settings = Settings()
    assert (settings.redis_host, settings.redis_port, settings.redis_db) == ("localhost", 6379, 0)
    assert settings.redis_password is None
    assert (settings.cache_prefix, settings.cache_default_ttl, settings.cache_serializer) == ("cache:", 3600, "json")
    assert settings.celery_broker_url == settings.celery_result_backend == "redis://localhost:6379/0"


def test_celery_can_be_sent_elsewhere_as_printed() -> None:
    Path(".env").write_text("REDIS_HOST=cache.example\n" + CELERY)
    settings = Settings()
    assert settings.redis_url == "redis://cache.example:6379/0"
    assert settings.celery_broker_url == settings.celery_result_backend == "redis://localhost:6379/0"


def test_caching(site: Bookstore) -> None:
    printed = typed_in("caching.py", site)
    assert printed.splitlines() == ["Key exists", "Redis connected!"]


def test_caches_in_memory(site: Bookstore) -> None:
    typed_in("in_memory.py", site)


def test_sessions_leaderboards_and_analytics(site: Bookstore) -> None:
    typed_in("uses.py", site)


@pytest.mark.slow
def test_tasks_are_called_and_their_mail_arrives(site_with_worker: Bookstore, mailbox: tuple[Mailbox, int]) -> None:
    typed_in("calling_tasks.py", site_with_worker)
    arrived = [mail["Subject"] for mail in mailbox[0].to("user@example.com")]
    assert arrived == ["Subject", "Soon"]


def test_routes_cache_invalidate_and_enqueue(
    site_with_worker: Bookstore, mailbox: tuple[Mailbox, int], eventually: Eventually
) -> None:
    port = free_port()
    with site_with_worker.run(f"uvicorn routes:app --port {port}") as server:
        eventually(lambda: server.says("startup complete"), timeout=20)
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            grace = {"email": "grace@example.org", "name": "Grace", "password": "correct horse"}
            user = client.post("/register", json=grace).raise_for_status().json()
            url = f"/users/{user['id']}"
            assert client.get(url).json() == user
            assert client.get(url).json() == user  # from the cache
            assert client.put(url, json={"name": "Grace Hopper"}).json()["name"] == "Grace Hopper"
            assert client.get(url).json()["name"] == "Grace Hopper"
            assert client.get("/users/12345").json() is None
        eventually(lambda: mailbox[0].to("grace@example.org"), timeout=20)


@pytest.mark.slow
def test_a_task_retries_by_its_base_class(site: Bookstore, eventually: Eventually) -> None:
    calls = (
        "from payments import charge_payment_task as charge",
        "print(charge.delay(1, 2).get(timeout=20))",
        "print(type(charge.delay(2, 9).get(timeout=20, propagate=False)).__name__)",
    )
    (site.directory / "call_payments.py").write_text("\n".join(calls))
    # A queue of its own: the other worker of this module does not know the task, and would refuse it.
    site = replace(site, redis_url=site.redis_url.removesuffix("/0") + "/1")
    with site.run("celery -A payments worker --loglevel=info --pool=solo") as worker:
        eventually(lambda: worker.says(" ready."), timeout=20)
        printed = typed_in("call_payments.py", site)
    assert printed.splitlines() == ["{'payment': 1, 'attempts': 3}", "ConnectionError"]


def test_the_folder_holds_no_program_that_is_not_run() -> None:
    source = Path(__file__).read_text()
    programs = {path.stem for path in FOLDER.glob("[!t]*.py")}
    assert programs
    assert all(program in source for program in programs)
