"""The bookstore that the tests of this folder share. A test that breaks something of it starts its own."""

from collections.abc import Iterator
from dataclasses import replace

import httpx2
import pytest
from aiosmtpd.controller import Controller

from backburner.redis.embedded import EmbeddedServer
from tests.app.bookstore import Bookstore, Mailbox
from tests.conftest import Eventually
from tests.processes import free_port


@pytest.fixture(scope="package")
def mail_server() -> Iterator[Controller]:
    controller = Controller(Mailbox(), hostname="127.0.0.1", port=free_port())
    controller.start()
    yield controller
    controller.stop()


@pytest.fixture(scope="package")
def mailbox(mail_server: Controller) -> Mailbox:
    """What the shared bookstore has sent."""
    handler = mail_server.handler
    assert isinstance(handler, Mailbox)
    return handler


@pytest.fixture(scope="package")
def store(
    tmp_path_factory: pytest.TempPathFactory, mail_server: Controller, eventually: Eventually
) -> Iterator[Bookstore]:
    """The shared bookstore, running. Use users and books of your own."""
    with EmbeddedServer(tmp_path_factory.mktemp("bookstore-valkey")) as valkey:
        store = Bookstore(tmp_path_factory.mktemp("bookstore"), valkey.url, eventually, mail_server.port)
        # A machine under load is no outage here: what a server that does not answer in time means is `test_outage`'s.
        store.more["CACHE_TIMEOUT"] = "5"
        store.migrate()
        with store.worker(), store.api():
            yield store


@pytest.fixture
def own_store(store: Bookstore, tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Bookstore:
    """A bookstore for one test: an empty database, an empty server, nothing started."""
    own = replace(store, directory=tmp_path_factory.mktemp("own-bookstore"), redis_url=redis_url, url="", more={})
    own.migrate()
    return own


@pytest.fixture
def client(store: Bookstore) -> Iterator[httpx2.Client]:
    """Somebody who is not logged in."""
    with store.client() as client:
        yield client


@pytest.fixture(scope="package")
def token(store: Bookstore) -> str:
    """Logging in takes time on purpose, so most tests share a user."""
    with store.client() as client:
        store.log_in(client)
        return client.cookies["session"]


@pytest.fixture
def reader(store: Bookstore, token: str) -> Iterator[httpx2.Client]:
    """Somebody who is logged in, and stays so."""
    with store.client(cookies={"session": token}) as client:
        yield client


@pytest.fixture
def member(store: Bookstore) -> Iterator[httpx2.Client]:
    """Somebody who is logged in, and may do with the account what the test likes."""
    with store.client() as client:
        store.log_in(client)
        yield client
