"""Login sessions, kept on the server and known to the client by a random token; and limits on guessing passwords."""

import secrets
from hashlib import sha256

from app.core.cache import sessions
from app.core.config import settings

_PER_ACCOUNT = "10/minute", 6
"""Wrong passwords for one account from one address, and seconds until one more. By the account alone, anybody could
lock out its owner."""
_PER_ADDRESS = "100/minute", 1
"""Those from one address: one password tried on many accounts is a guess, too."""


def seconds_to_wait(email: str, address: str) -> int:
    """Until a password may be tried: there were too many wrong ones lately. 0 for now.

    Raises:
        StoreUnavailable: it cannot be told, and so none may be tried.
    """
    wrong = sessions().limiter("login")
    waits = [
        seconds
        for key, (rate, seconds) in _limits(email, address).items()
        if not wrong.allow(key, rate, cost=0).remaining
    ]
    return max(waits, default=0)


def note_wrong_password(email: str, address: str) -> None:
    """Count it.

    Raises:
        StoreUnavailable: it cannot be counted.
    """
    wrong = sessions().limiter("login")
    for key, (rate, _) in _limits(email, address).items():
        wrong.allow(key, rate)


def _limits(email: str, address: str) -> dict[str, tuple[str, int]]:
    return {_key(f"{address} {email.lower()}"): _PER_ACCOUNT, address: _PER_ADDRESS}


def open_session(user_id: int) -> str:
    """Log a user in; returns the token that proves it.

    Raises:
        StoreUnavailable: the session could not be stored.
    """
    token = secrets.token_urlsafe(32)
    _store(token, user_id)
    return token


def user_of(token: str) -> int | None:
    """The id of the user who is logged in with this token; None if nobody is. Using a session extends it.

    Raises:
        StoreUnavailable: sessions cannot be read at the moment.
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
    """Log a user out everywhere except in this session.

    Raises:
        StoreUnavailable: the sessions may still be there.
    """
    sessions().tags(_tag(user_id)).flush()
    _store(token, user_id)


def _store(token: str, user_id: int) -> None:
    sessions().tags(_tag(user_id)).put(_key(token), user_id, ttl=settings.session_ttl)


def _key(token: str) -> str:
    # Somebody who can read the server must not be able to log in with what they find there.
    return sha256(token.encode()).hexdigest()


def _tag(user_id: int) -> str:
    return f"user:{user_id}"
