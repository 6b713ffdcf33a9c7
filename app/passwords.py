"""Passwords, hashed with Argon2; comparing takes the same time whether there is a hash to compare with or not."""

from functools import cache

from pwdlib import PasswordHash


@cache
def _argon2() -> PasswordHash:
    return PasswordHash.recommended()


@cache
def _hash_of_nobody() -> str:
    return hash_password("nobody has this password")


def hash_password(password: str) -> str:
    """A salted hash to keep in place of the password."""
    return _argon2().hash(password)


def password_matches(password: str, password_hash: str | None) -> bool:
    """Whether the password is the one that was hashed.

    Without a hash it is not, but the answer takes as long, so that timing does not reveal which e-mails have an
    account.
    """
    expected = password_hash or _hash_of_nobody()
    matches = _argon2().verify(password, expected)
    return matches and password_hash is not None
