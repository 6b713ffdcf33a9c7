"""The caught mails at a URL: a list, one mail, and the same as JSON for tests.

A mail is untrusted content. Everything is escaped; its HTML is shown only in a sandboxed frame that may load nothing
and run nothing; and only requests whose Host is this machine are answered, so that no web page can read mails by
DNS rebinding.
"""

from email.message import EmailMessage
from html import escape
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from backburner.cli.mailbox import Mail, Mailbox

_STYLE = Path(__file__).with_name("mail.css")
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; frame-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_FRAME_HEADERS = _HEADERS | {
    "Content-Security-Policy": (
        "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'self'"
    ),
}


def mail_page(mailbox: Mailbox) -> Starlette:
    """The web application that shows `mailbox`."""

    def found(request: Request) -> Mail:
        mail = mailbox.get(request.path_params["id"])
        if mail is None:
            raise HTTPException(404, "no such mail; only the newest are kept")
        return mail

    async def listing(_: Request) -> Response:
        return _page("Mail", _table(mailbox), refresh=True)

    async def one(request: Request) -> Response:
        return _page("Mail", _whole(found(request)))

    async def html(request: Request) -> Response:
        return HTMLResponse(_body(found(request).message, "html") or "", headers=_FRAME_HEADERS)

    async def raw(request: Request) -> Response:
        return PlainTextResponse(found(request).raw.decode("utf-8", "replace"), headers=_HEADERS)

    async def messages(_: Request) -> Response:
        return JSONResponse([_summary(mail) for mail in mailbox.mails()], headers=_HEADERS)

    async def message(request: Request) -> Response:
        mail = found(request)
        parts = {kind: _body(mail.message, kind) for kind in ("text", "html")}
        headers = [[name, str(value)] for name, value in mail.message.items()]
        return JSONResponse({**_summary(mail), **parts, "headers": headers}, headers=_HEADERS)

    async def clear(_: Request) -> Response:
        mailbox.clear()
        return Response(status_code=204, headers=_HEADERS)

    async def style(_: Request) -> Response:
        return Response(_STYLE.read_bytes(), media_type="text/css", headers=_HEADERS)

    return Starlette(
        routes=[
            Route("/", listing),
            Route("/style.css", style),
            Route("/messages/{id}", one),
            Route("/messages/{id}/html", html),
            Route("/messages/{id}/raw", raw),
            Route("/api/messages", messages),
            Route("/api/messages", clear, methods=["DELETE"]),
            Route("/api/messages/{id}", message),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])],
    )


def _summary(mail: Mail) -> dict[str, Any]:
    message = mail.message
    return {
        "id": mail.id,
        "sender": _header(message, "Return-Path").strip("<>"),
        "recipients": [str(value) for value in message.get_all("Delivered-To", [])],
        "from": _header(message, "From"),
        "to": _header(message, "To"),
        "subject": _header(message, "Subject"),
        "date": _header(message, "Date"),
    }


def _header(message: EmailMessage, name: str) -> str:
    return str(message.get(name, ""))


def _body(message: EmailMessage, kind: str) -> str | None:
    part = message.get_body(("plain" if kind == "text" else "html",))
    if part is None:
        return None
    try:
        return str(part.get_content()).replace("\r\n", "\n")
    except (LookupError, ValueError):  # an unknown charset, or content that is not what it says
        payload = part.get_payload(decode=True)
        return payload.decode("utf-8", "replace") if isinstance(payload, bytes) else str(payload)


def _table(mailbox: Mailbox) -> str:
    rows = [
        f'<tr><td><a href="/messages/{escape(mail["id"])}">{escape(mail["subject"]) or "(no subject)"}</a></td>'
        f"<td>{escape(', '.join(mail['recipients']))}</td><td>{escape(mail['from'])}</td>"
        f'<td class="date">{escape(mail["date"])}</td></tr>'
        for mail in map(_summary, mailbox.mails())
    ]
    if not rows:
        return '<p class="empty">No mail yet. Whatever is sent to SMTP_URL appears here and goes nowhere else.</p>'
    return f"<table><tr><th>Subject</th><th>To</th><th>From</th><th>Date</th></tr>{''.join(rows)}</table>"


def _whole(mail: Mail) -> str:
    message = mail.message
    headers = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in message.items()
    )
    parts = [f'<table>{headers}</table><p><a href="/messages/{escape(mail.id)}/raw">As it was sent</a></p>']
    if _body(message, "html") is not None:
        parts.append(f'<iframe sandbox src="/messages/{escape(mail.id)}/html" title="The mail as HTML"></iframe>')
    if (text := _body(message, "text")) is not None:
        parts.append(f"<pre>{escape(text)}</pre>")
    attachments = [escape(part.get_filename() or part.get_content_type()) for part in message.iter_attachments()]
    if attachments:
        parts.append(f"<p>Attached: {', '.join(attachments)}</p>")
    return "".join(parts)


def _page(title: str, content: str, *, refresh: bool = False) -> Response:
    meta = '<meta http-equiv="refresh" content="5">' if refresh else ""
    return HTMLResponse(
        f'<!doctype html><html lang="en"><meta charset="utf-8">{meta}<title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="/style.css">'
        f'<h1><a href="/">{escape(title)}</a></h1>{content}</html>',
        headers=_HEADERS,
    )
