"""The mail catcher: what is kept, and that a hostile mail can do nothing on its page."""

import asyncio
import smtplib
from collections.abc import AsyncIterator
from email.message import EmailMessage
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from backburner.cli.mailbox import Mailbox
from backburner.cli.mailpage import mail_page
from backburner.cli.mailserver import MailServer
from backburner.ports import listen

SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
def mailbox(tmp_path: Path) -> Mailbox:
    return Mailbox(tmp_path / "mail")


@pytest.fixture
def client(mailbox: Mailbox) -> TestClient:
    return TestClient(mail_page(mailbox), base_url="http://127.0.0.1:8025")


def hostile() -> bytes:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = f'"{SCRIPT}" <a@b.c>', "d@e.f", SCRIPT
    message.set_content(SCRIPT)
    message.add_alternative(f"<p>Hello</p>{SCRIPT}", subtype="html")
    message.add_attachment(b"x", maintype="text", subtype="plain", filename=f"{SCRIPT}.txt")
    return message.as_bytes()


def test_a_hostile_mail_is_escaped_everywhere(mailbox: Mailbox, client: TestClient) -> None:
    mail = mailbox.add("a@b.c", ["d@e.f"], hostile())
    for page in ("/", f"/messages/{mail.id}"):
        answer = client.get(page)
        assert "<script" not in answer.text
        assert "&lt;script&gt;alert(1)" in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "script-src" not in answer.headers["content-security-policy"]


@pytest.mark.parametrize("address", ["<", "-:;\\", ".:", "\xe4@["])
def test_a_mail_whose_addresses_are_none_is_shown_beside_the_others(
    mailbox: Mailbox, client: TestClient, address: str
) -> None:
    mail = mailbox.add("a@b.c", ["d@e.f"], f"To: {address}\r\nSubject: odd\r\n\r\nHello".encode("latin-1"))
    assert "odd" in client.get("/").text
    assert "Hello" in client.get(f"/messages/{mail.id}").text
    assert [found["subject"] for found in client.get("/api/messages").json()] == ["odd"]


def test_an_envelope_that_is_no_utf_8_is_kept_as_it_was_sent(mailbox: Mailbox, client: TestClient) -> None:
    sender = b"caf\xe9@b.c".decode("utf-8", "surrogateescape")  # as the SMTP server hands it on
    mail = mailbox.add(sender, ["d@e.f"], b"Subject: odd\r\n\r\nHello")
    assert mail.raw.startswith(b"Return-Path: <caf\xe9@b.c>\r\n")
    assert "Hello" in client.get(f"/messages/{mail.id}").text
    assert [found["subject"] for found in client.get("/api/messages").json()] == ["odd"]


def test_the_html_of_a_mail_is_sandboxed(mailbox: Mailbox, client: TestClient) -> None:
    mail = mailbox.add("a@b.c", ["d@e.f"], hostile())
    assert f'<iframe sandbox src="/messages/{mail.id}/html"' in client.get(f"/messages/{mail.id}").text
    answer = client.get(f"/messages/{mail.id}/html")
    assert "<p>Hello</p>" in answer.text
    assert answer.headers["content-security-policy"].startswith("sandbox; default-src 'none'")


def test_the_raw_mail_is_plain_text_with_its_envelope(mailbox: Mailbox, client: TestClient) -> None:
    mail = mailbox.add("bounce@b.c", ["d@e.f", "hidden@e.f"], hostile())
    answer = client.get(f"/messages/{mail.id}/raw")
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.text.startswith("Return-Path: <bounce@b.c>\r\nDelivered-To: d@e.f\r\nDelivered-To: hidden@e.f")


def test_tests_can_read_mails_as_json_and_clear_them(mailbox: Mailbox, client: TestClient) -> None:
    first = mailbox.add("a@b.c", ["d@e.f"], hostile())
    second = mailbox.add("a@b.c", ["d@e.f"], b"Subject: =?utf-8?b?R3LDvMOfZQ==?=\r\n\r\nplain\r\n")
    listed = client.get("/api/messages").json()
    assert [mail["id"] for mail in listed] == [second.id, first.id]
    assert listed[0]["subject"] == "Grüße"
    whole = client.get(f"/api/messages/{second.id}").json()
    assert whole["text"] == "plain\n"
    assert whole["html"] is None
    assert client.delete("/api/messages").status_code == 204
    assert client.get("/api/messages").json() == []


@pytest.mark.parametrize("mail_id", ["nothing", "..%2F..%2Fsecret", "%2Fetc%2Fpasswd"])
def test_an_unknown_mail_is_not_found(client: TestClient, mail_id: str, tmp_path: Path) -> None:
    (tmp_path / "secret.eml").write_text("Subject: secret\n\n")
    for suffix in ("", "/html", "/raw"):
        assert client.get(f"/messages/{mail_id}{suffix}").status_code == 404


def test_a_page_on_another_name_cannot_read_mails(mailbox: Mailbox) -> None:
    rebound = TestClient(mail_page(mailbox), base_url="http://evil.example:8025")
    assert rebound.get("/api/messages").status_code == 400


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"no headers at all",
        b"Content-Type: text/plain; charset=nonsense\r\n\r\n\xff\xfe",
        b"Content-Type: text/html; charset=utf-8\r\n\r\n\xff<b>",
        b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\nbroken",
        b"Subject: =?utf-8?b?broken\r\nDate: never\r\nFrom: <<<>>>\r\n\r\n\x00",
    ],
)
def test_a_broken_mail_is_shown_as_well_as_it_can_be(mailbox: Mailbox, client: TestClient, raw: bytes) -> None:
    mail = mailbox.add("", ["d@e.f"], raw)
    for path in ("/", f"/messages/{mail.id}", f"/messages/{mail.id}/raw", f"/api/messages/{mail.id}"):
        assert client.get(path).status_code == 200


def test_only_the_newest_mails_are_kept(mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backburner.cli.mailbox._KEPT", 3)
    added = [mailbox.add("a@b.c", ["d@e.f"], b"Subject: x\r\n\r\n").id for _ in range(5)]
    assert mailbox.ids() == added[:1:-1]


class TestServer:
    @pytest.fixture
    async def smtp_port(self, tmp_path: Path) -> AsyncIterator[int]:
        with listen(None) as smtp, listen(None) as page:
            server = MailServer(tmp_path / "mail", smtp, page)
            await server.start()
            yield smtp.getsockname()[1]
            await server.stop()

    @pytest.mark.anyio
    async def test_every_recipient_is_kept_also_those_that_no_header_names(
        self, smtp_port: int, tmp_path: Path
    ) -> None:
        def send() -> None:
            with smtplib.SMTP("127.0.0.1", smtp_port, timeout=5) as client:
                client.sendmail("a@b.c", ["d@e.f", "hidden@e.f"], "Subject: hi\r\n\r\n.leading dot\r\n")

        await asyncio.to_thread(send)
        [mail] = Mailbox(tmp_path / "mail").mails()
        assert mail.message.get_all("Delivered-To") == ["d@e.f", "hidden@e.f"]
        assert mail.message.get_content().strip() == ".leading dot"
