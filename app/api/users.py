"""Users. Everybody may register and see names; e-mail and changes are for the user alone."""

import logging
from typing import Literal

from fastapi import APIRouter, HTTPException, Response
from sqlalchemy.exc import IntegrityError

from app import login
from app.api.deps import CurrentUser, Id, RoomToHash, Token
from app.core.database import DB
from app.models import User
from app.problems import not_found, problems
from app.schemas import Account, Registered, UserCreate, UserRead, UserUpdate
from app.workers.tasks import send_welcome_email
from backburner.errors import PublishError

router = APIRouter(prefix="/users", tags=["users"])

log = logging.getLogger("app.users")


@router.post(
    "",
    status_code=201,
    summary="Register",
    dependencies=[RoomToHash],
    responses=problems(400, 403, 409, 422, 503),
)
def register(new: UserCreate, db: DB, response: Response) -> Registered:
    """Open an account. A welcome e-mail is sent in the background."""
    try:
        user = User.create(db, obj_in=new)
    except IntegrityError as error:
        raise _taken() from error
    response.headers["Location"] = f"/users/{user.id}"
    account = Account.model_validate(user)
    return Registered(**account.model_dump(), welcome_email=_welcome(user))


@router.get("/me", summary="Read one's own account", responses=problems(401, 503))
def read_me(user: CurrentUser) -> Account:
    """The user who is logged in."""
    return Account.model_validate(user)


@router.get("/{user_id}", summary="Read one", responses=problems(404, 422, 503))
def read_user(user_id: Id, db: DB) -> UserRead:
    """What everybody may know about a user: the name, and when the account was opened."""
    user = User.get(db, id=user_id)
    if user is None:
        raise not_found(f"user {user_id}")
    return UserRead.model_validate(user)


@router.patch(
    "/{user_id}",
    summary="Change one's own account",
    dependencies=[RoomToHash],
    responses=problems(400, 401, 403, 409, 422, 503),
)
def update_user(user_id: Id, changes: UserUpdate, db: DB, user: CurrentUser, token: Token) -> Account:
    """Change the fields that are given, and nothing else. A new password ends all other sessions."""
    if user_id != user.id:
        raise HTTPException(403, "You may change your own account only.")
    try:
        User.update(db, id=user_id, obj_in=changes)
    except IntegrityError as error:
        raise _taken() from error
    if "password" in changes.model_fields_set and token:
        login.close_other_sessions(user_id, token)
    return Account.model_validate(user)


def _welcome(user: User) -> Literal["queued", "delayed"]:
    try:
        send_welcome_email.delay(user.id)
    except PublishError:
        # Losing a welcome is better than losing a user.
        log.exception("User %d is registered, but the welcome e-mail was not queued", user.id)
        return "delayed"
    return "queued"


def _taken() -> HTTPException:
    return HTTPException(409, "There is an account with this e-mail already.")
