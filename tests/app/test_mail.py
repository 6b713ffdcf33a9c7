"""The welcome e-mail: through the queue and a real worker, over real SMTP."""

import smtplib
from typing import Self

import httpx2
import pytest

from tests.app.bookstore import PASSWORD, Bookstore, Mailbox
from tests.conftest import Eventually


def test_who_registers_is_welcomed_once(
    store: Bookstore, client: httpx2.Client, mailbox: Mailbox, eventually: Eventually
) -> None:
    email = store.register(client)["email"]
    (mail,) = eventually(lambda: mailbox.to(email))
    assert mail["Subject"] == "Welcome to the bookstore"
    assert mail["From"] == "The Bookstore <books@localhost>"
    assert "Hello Rea Der," in mail.get_content()


def test_a_job_that_runs_twice_welcomes_once(
    store: Bookstore, client: httpx2.Client, mailbox: Mailbox, eventually: Eventually
) -> None:
    user = store.register(client)
    eventually(lambda: mailbox.to(user["email"]))
    with store.run(
        f"python -c 'from app.workers.tasks import *; print(send_welcome_email.delay({user['id']}).get(10))'"
    ) as again:
        assert again.process.wait(20) == 0, again.output
        assert "sent before" in again.output
    assert len(mailbox.to(user["email"])) == 1


def test_the_welcome_waits_for_a_mail_server_that_is_busy(
    store: Bookstore, client: httpx2.Client, mailbox: Mailbox, eventually: Eventually
) -> None:
    mailbox.refusal = "451 try again later"
    try:
        email = store.register(client)["email"]
    finally:
        mailbox.refusal = ""
    eventually(lambda: mailbox.to(email), timeout=20)


def test_a_name_cannot_smuggle_a_header_into_the_mail(
    client: httpx2.Client, mailbox: Mailbox, eventually: Eventually
) -> None:
    email = "smuggler@example.org"
    name = "Eve\r\nBcc: victim@example.org"
    answer = client.post("/users", json={"email": email, "name": name, "password": PASSWORD})
    assert answer.json()["name"] == "Eve Bcc: victim@example.org"
    (mail,) = eventually(lambda: mailbox.to(email))
    assert mail["Bcc"] is None


def test_a_subject_with_a_line_break_is_refused() -> None:
    from app.mail import compose

    with pytest.raises(ValueError, match="linefeed"):
        compose(to="a@example.org", subject="Hi\nBcc: victim@example.org", body="")
    with pytest.raises(ValueError, match="linefeed"):
        compose(to="a@example.org\nBcc: victim@example.org", subject="Hi", body="")


@pytest.mark.parametrize(
    ("refused", "raised"),
    [
        (smtplib.SMTPRecipientsRefused({"a@example.org": (550, b"no such user")}), "MailRefusedError"),
        (smtplib.SMTPRecipientsRefused({"a@example.org": (450, b"busy")}), "ConnectionError"),
        (smtplib.SMTPDataError(554, b"spam"), "MailRefusedError"),
        (smtplib.SMTPDataError(451, b"later"), "ConnectionError"),
        (smtplib.SMTPServerDisconnected("gone"), "SMTPServerDisconnected"),
        (TimeoutError("timed out"), "TimeoutError"),
    ],
    ids=str,
)
def test_only_what_may_pass_is_tried_again(monkeypatch: pytest.MonkeyPatch, refused: Exception, raised: str) -> None:
    from app import mail

    class Server:
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...

        def send_message(self, message: object) -> None:
            raise refused

    monkeypatch.setattr(mail, "_connect", Server)
    with pytest.raises(Exception) as caught:
        mail.send(mail.compose(to="a@example.org", subject="Hi", body=""))
    assert type(caught.value).__name__ == raised
    assert isinstance(caught.value, OSError) == (raised != "MailRefusedError")
