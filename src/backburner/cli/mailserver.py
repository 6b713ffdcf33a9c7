"""The mail catcher: SMTP on one port, the page on another, both in this process and its event loop."""

import asyncio
import socket
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import uvicorn

from backburner.cli.mailbox import Mailbox
from backburner.cli.mailpage import mail_page


class MailServer:
    """Serves a directory of mails on two listening sockets, which the caller closes."""

    def __init__(self, directory: Path, smtp: socket.socket, page: socket.socket) -> None:
        self._mailbox = Mailbox(directory)
        self._smtp_socket = smtp
        self._page_socket = page
        self._smtp: asyncio.Server | None = None
        self._page: _PageServer | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to serve, starting with clients that are already connected."""
        loop = asyncio.get_running_loop()
        self._smtp = await loop.create_server(self._mailbox.protocol, sock=self._smtp_socket)
        config = uvicorn.Config(
            mail_page(self._mailbox), log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1
        )
        self._page = _PageServer(config)
        self._serving = asyncio.create_task(self._page.serve(sockets=[self._page_socket]))

    async def stop(self) -> None:
        """Stop serving."""
        if self._smtp is not None:
            self._smtp.close()
        if self._page is not None and self._serving is not None:
            self._page.should_exit = True
            await self._serving


class _PageServer(uvicorn.Server):
    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()  # the caller handles signals
