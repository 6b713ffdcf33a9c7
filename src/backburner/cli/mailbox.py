"""A mail server that delivers nothing: it keeps mails as files, which `backburner.cli.mailpage` shows."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.headerregistry import HeaderRegistry
from email.message import EmailMessage
from pathlib import Path
from typing import Any, cast

from aiosmtpd.smtp import SMTP, Envelope, Session

_KEPT = 500

_structured = HeaderRegistry()
_text = HeaderRegistry(use_default_map=False)


def _header(name: str, value: str) -> Any:
    try:
        return _structured(name, value)
    except Exception:  # noqa: BLE001  # some that are no addresses make the standard library raise whatever comes
        return _text(name, value)


_POLICY = policy.default.clone(header_factory=_header)


@dataclass(frozen=True, slots=True)
class Mail:
    """One mail as it was received."""

    id: str
    raw: bytes

    @property
    def message(self) -> EmailMessage:
        return message_from_bytes(self.raw, policy=_POLICY)


class Mailbox:
    """Mails in a directory, one file each, the newest 500 of them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def ids(self) -> list[str]:
        """The newest first."""
        return sorted((file.stem for file in self._directory.glob("*.eml")), reverse=True)

    def mails(self) -> Iterable[Mail]:
        """The newest first."""
        return filter(None, map(self.get, self.ids()))

    def get(self, mail_id: str) -> Mail | None:
        """The mail with this id."""
        # Only names that are listed in the directory, because the id comes from a URL.
        if mail_id not in self.ids():
            return None
        try:
            return Mail(mail_id, (self._directory / f"{mail_id}.eml").read_bytes())
        except FileNotFoundError:
            return None

    def add(self, sender: str, recipients: Iterable[str], content: bytes) -> Mail:
        """Keep a mail, and remove the oldest ones beyond the limit."""
        envelope = [f"Return-Path: <{sender}>", *(f"Delivered-To: {recipient}" for recipient in recipients)]
        raw = "".join(f"{header}\r\n" for header in envelope).encode(errors="surrogateescape") + content
        mail = Mail(f"{time.time_ns():020}", raw)
        draft = self._directory / f"{mail.id}.new"
        draft.write_bytes(raw)
        draft.rename(draft.with_suffix(".eml"))
        for old in self.ids()[_KEPT:]:
            (self._directory / f"{old}.eml").unlink(missing_ok=True)
        return mail

    def clear(self) -> None:
        """Remove all mails."""
        for file in self._directory.glob("*.eml"):
            file.unlink(missing_ok=True)

    def protocol(self) -> SMTP:
        """An SMTP protocol for one connection."""
        return SMTP(_Handler(self), enable_SMTPUTF8=True, hostname="backburner.localhost", ident="Backburner")


class _Handler:
    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        content = cast("bytes", envelope.content or b"")
        self._mailbox.add(envelope.mail_from or "", envelope.rcpt_tos, content)
        return "250 OK: kept, not delivered"
