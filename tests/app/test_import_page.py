"""The page that imports books, in a real browser."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.app.bookstore import PASSWORD, Bookstore
from tests.conftest import Eventually
from tests.processes import free_port, running

pytestmark = pytest.mark.slow

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""What WebDriver calls a reference to an element."""

BAR = "return document.querySelector('progress').value"
SAID = "return document.querySelector('output').value"


class Browser:
    """As much of WebDriver as these tests need."""

    def __init__(self, driver: httpx2.Client) -> None:
        options = {"args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]}
        wanted = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
        self._driver = driver
        self._session = driver.post("/session", json=wanted).raise_for_status().json()["value"]["sessionId"]

    def post(self, path: str, **body: Any) -> Any:
        return self._driver.post(f"/session/{self._session}{path}", json=body).raise_for_status().json()["value"]

    def open(self, url: str) -> None:
        self.post("/url", url=url)

    def element(self, selector: str) -> str:
        return f"/element/{self.post('/element', using='css selector', value=selector)[ELEMENT]}"

    def write(self, selector: str, text: str) -> None:
        self.post(f"{self.element(selector)}/value", text=text)

    def click(self, selector: str) -> None:
        self.post(f"{self.element(selector)}/click")

    def run(self, script: str) -> Any:
        return self.post("/execute/sync", script=script, args=[])

    def close(self) -> None:
        self._driver.delete(f"/session/{self._session}")


@contextmanager
def browsing(directory: Path, eventually: Eventually) -> Iterator[Browser]:
    port = free_port()
    with (
        running(f"chromedriver --port={port}", directory, {"HOME": str(directory)}) as program,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as driver,
    ):

        def is_up() -> bool:
            with suppress(httpx2.TransportError):
                return bool(driver.get("/status").json()["value"]["ready"])
            return False

        eventually(is_up, timeout=20)
        assert program.process.poll() is None
        browser = Browser(driver)
        try:
            yield browser
        finally:
            browser.close()


@pytest.mark.skipif(not shutil.which("chromedriver"), reason="needs Chromium and its driver")
def test_the_bar_moves_and_goes_on_after_the_page_is_loaded_again(
    store: Bookstore, client: httpx2.Client, tmp_path: Path, eventually: Eventually
) -> None:
    tag, rows = uuid.uuid4().hex, 30_000
    file = tmp_path / "books.csv"
    file.write_text("title,author\n" + "".join(f"{tag} {number},A\n" for number in range(rows)))
    email = f"{tag}@example.org"
    client.post("/users", json={"email": email, "name": "B", "password": PASSWORD}).raise_for_status()
    with browsing(tmp_path, eventually) as browser:
        browser.open(f"{store.url}/import")
        browser.write("[name=file]", str(file))
        browser.click("#upload button")
        eventually(lambda: browser.run("return !login.hidden"))
        browser.write("[name=email]", email)
        browser.write("[name=password]", PASSWORD)
        browser.click("#login button")
        eventually(lambda: browser.run("return login.hidden"))
        browser.click("#upload button")
        seen = eventually(lambda: browser.run(BAR), timeout=20)
        assert seen < rows, "it was not over before it was seen"
        browser.run("location.reload()")
        eventually(lambda: (browser.run(BAR) or 0) > seen, timeout=20)
        eventually(lambda: browser.run(SAID).startswith(f"{rows} created"), timeout=60)
        browser.run("location.reload()")
        eventually(lambda: browser.run(SAID).startswith(f"{rows} created"))
