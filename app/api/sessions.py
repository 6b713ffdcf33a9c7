"""Logging in and out."""

from fastapi import APIRouter, HTTPException, Request, Response

from app import login
from app.api.deps import COOKIE, RoomToHash, Token
from app.core.config import settings
from app.core.database import DB
from app.models import User
from app.problems import problems
from app.schemas import Account, Credentials, SessionOpened

router = APIRouter(prefix="/sessions", tags=["sessions"])

_LOCAL = {"localhost", "127.0.0.1", "::1"}


@router.post(
    "",
    status_code=201,
    summary="Log in",
    dependencies=[RoomToHash],
    responses=problems(400, 401, 403, 422, 429, 503),
)
def log_in(credentials: Credentials, db: DB, request: Request, response: Response) -> SessionOpened:
    """Open a session. The response sets a cookie for browsers, and contains the same token for programs."""
    address = request.client.host if request.client else "unknown"
    if wait := login.seconds_to_wait(credentials.email, address):
        raise HTTPException(429, "Too many wrong passwords.", {"Retry-After": str(wait)})
    user = User.authenticate(db, email=credentials.email, password=credentials.password)
    if user is None:
        login.note_wrong_password(credentials.email, address)
        raise _refused()
    password_hash = user.password_hash
    token = login.open_session(user.id)
    db.refresh(user)
    if user.password_hash != password_hash:
        # A new password ends all sessions, and may have been set before this one existed.
        login.close_session(token)
        raise _refused()
    # The cookie itself does not expire: each request extends the session, on the server.
    response.set_cookie(COOKIE, token, httponly=True, samesite="lax", secure=request.url.hostname not in _LOCAL)
    return SessionOpened(token=token, expires_in=settings.session_ttl, user=Account.model_validate(user))


@router.delete("/current", status_code=204, summary="Log out", responses=problems(403, 503))
def log_out(token: Token, response: Response) -> None:
    """End this session. Without one, nothing happens."""
    if token:
        login.close_session(token)
    response.delete_cookie(COOKIE, httponly=True, samesite="lax")


def _refused() -> HTTPException:
    return HTTPException(401, "E-mail and password do not fit.", {"WWW-Authenticate": "Bearer"})
