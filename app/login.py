"""Who is logged in: sessions, kept in the server and known to the client by a random token. And who tries too often."""

import secrets
from hashlib import sha256

from app.core.cache import sessions
from app.core.config import settings
from backburner.cache import Allowance

PER_ACCOUNT = "10/minute"
"""Attempts to log in to one account from one address; by the account alone, anybody could lock its owner out."""
PER_ADDRESS = "100/minute"
"""Attempts from one address: one password tried on many accounts is a guess, too."""


def attempt(email: str, address: str) -> Allowance:
    """Count an attempt to log in, before the password is looked at; false if there were too many.

    Raises:
        StoreUnavailable: it cannot be counted, and so must not be made.
    """
    attempts = sessions().limiter("login")
    account = _key(f"{address} {email.lower()}")
    return attempts.allow(account, PER_ACCOUNT) and attempts.allow(address, PER_ADDRESS)


def open_session(user_id: int) -> str:
    """Log a user in; gives the token that proves it.

    Raises:
        StoreUnavailable: the session could not be kept.
    """
    token = secrets.token_urlsafe(32)
    _store(token, user_id)
    return token


def user_of(token: str) -> int | None:
    """The id of the user who is logged in with this token; None if nobody is. Using a session prolongs it.

    Raises:
        StoreUnavailable: it cannot be told at the moment.
    """
    key = _key(token)
    user_id: int | None = sessions().get(key)
    if user_id is not None:
        sessions().touch(key, ttl=settings.session_ttl)
    return user_id


def close_session(token: str) -> None:
    """Log out.

    Raises:
        StoreUnavailable: the session may still be there.
    """
    sessions().forget(_key(token))


def close_other_sessions(user_id: int, token: str) -> None:
    """Log a user out everywhere but here.

    Raises:
        StoreUnavailable: the sessions may still be there.
    """
    sessions().tags(_tag(user_id)).flush()
    _store(token, user_id)


def _store(token: str, user_id: int) -> None:
    sessions().tags(_tag(user_id)).put(_key(token), user_id, ttl=settings.session_ttl)


def _key(token: str) -> str:
    # Who can read the server must not be able to log in with what is found there.
    return sha256(token.encode()).hexdigest()


def _tag(user_id: int) -> str:
    return f"user:{user_id}"
