"""Sends e-mail over SMTP. Blocking, for tasks; who may be written to is decided elsewhere."""

import smtplib
import ssl
from email.message import EmailMessage
from email.utils import localtime, make_msgid
from urllib.parse import unquote, urlsplit

from app.core.config import settings


class MailRefusedError(Exception):
    """The mail server refuses this e-mail for good."""


def compose(*, to: str, subject: str, body: str, message_id: str | None = None) -> EmailMessage:
    """An e-mail from us.

    Raises:
        ValueError: address or subject contain a line break or something else that is not allowed in a header.
    """
    message = EmailMessage()
    message["From"] = settings.mail_from
    message["To"] = to
    message["Subject"] = subject
    message["Date"] = localtime()
    message["Message-ID"] = message_id or make_msgid(domain="bookstore.localhost")
    message.set_content(body)
    return message


def send(message: EmailMessage) -> None:
    """Hand an e-mail to the server of ``SMTP_URL``.

    Raises:
        OSError: the server does not answer, or asks to try again later.
        MailRefusedError: it refuses this e-mail for good.
    """
    try:
        with _connect() as server:
            server.send_message(message)
    except smtplib.SMTPRecipientsRefused as error:
        code, reason = next(iter(error.recipients.values()))
        raise _refusal(code, reason) from error
    except smtplib.SMTPResponseException as error:
        raise _refusal(error.smtp_code, error.smtp_error) from error


def _connect() -> smtplib.SMTP:
    url = urlsplit(settings.smtp_url)
    host, timeout = url.hostname or "localhost", settings.mail_timeout
    if url.scheme == "smtps":
        server: smtplib.SMTP = smtplib.SMTP_SSL(
            host, url.port or 465, timeout=timeout, context=ssl.create_default_context()
        )
    else:
        server = smtplib.SMTP(host, url.port or 25, timeout=timeout)
    try:
        if url.username:
            if url.scheme == "smtp":
                server.starttls(context=ssl.create_default_context())  # a password never travels in the clear
            server.login(unquote(url.username), unquote(url.password or ""))
    except Exception:
        server.close()
        raise
    return server


def _refusal(code: int, reason: bytes | str) -> Exception:
    words = reason.decode(errors="replace") if isinstance(reason, bytes) else reason
    said = f"the mail server said {code} {words}"
    return MailRefusedError(said) if code >= 500 else ConnectionError(said)
