"""Dependencies of routes: the database, and who is asking."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from fastapi import Depends, HTTPException, Path, Request
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer

from app import login
from app.core.database import DB
from app.models import User
from app.models.base import MAX_ID

COOKIE = "session"

_cookie = APIKeyCookie(name=COOKIE, auto_error=False, description="Set by `POST /sessions`")
_bearer = HTTPBearer(auto_error=False, description="The token that `POST /sessions` gave")

_HASHED_AT_ONCE = 4
"""Argon2 takes 64 MB each time; a crowd that logs in must not take all the memory."""
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()

Id = Annotated[int, Path(ge=1, le=MAX_ID)]


def refuse_other_sites(request: Request) -> None:
    """Refuse what a browser sends on behalf of another site: its pages must not act for a user who is logged in
    here."""
    if request.method in {"GET", "HEAD", "OPTIONS"}:
        return
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None:
        foreign = site not in {"same-origin", "none"}
    else:
        foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if foreign:
        raise HTTPException(403, "Another site may not do that here.")


async def room_to_hash() -> AsyncIterator[None]:
    """For routes that hash passwords: waits on the event loop, where it keeps no thread from other routes."""
    async with _turns.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(_HASHED_AT_ONCE)):
        yield


RoomToHash = Depends(room_to_hash)


def session_token(
    cookie: Annotated[str | None, Depends(_cookie)],
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> str | None:
    """The token with which the client proves that it is logged in."""
    return bearer.credentials if bearer else cookie


Token = Annotated[str | None, Depends(session_token)]


def visitor(token: Token, db: DB) -> User | None:
    """The user who is logged in, if any."""
    user_id = login.user_of(token) if token else None
    return User.get(db, id=user_id) if user_id is not None else None


def current_user(user: Annotated[User | None, Depends(visitor)]) -> User:
    """The user who is logged in; a problem response if nobody is."""
    if user is None:
        raise HTTPException(401, "Log in first: POST /sessions.", {"WWW-Authenticate": "Bearer"})
    return user


Visitor = Annotated[User | None, Depends(visitor)]
CurrentUser = Annotated[User, Depends(current_user)]
