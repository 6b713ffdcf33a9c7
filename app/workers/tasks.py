"""The tasks. Each may run twice, and is written so that the second run does no harm."""

import time
from typing import Any

from celery import Task
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm.exc import StaleDataError

from app import importing, mail, uploads
from app.core.celery_app import celery_app
from app.core.database import DB
from app.models import User
from app.models.base import now
from backburner.queue import INJECTED

DIVISION_SECONDS = 2.0

WELCOME = """Hello {name},

welcome to the bookstore. Your account is ready.

Happy reading!
"""


class RetryTask(Task):  # type: ignore[type-arg]
    """Task with automatic retry on failure."""

    autoretry_for = (Exception,)
    retry_kwargs = {"max_retries": 3, "countdown": 60}  # noqa: RUF012  # Celery's way of writing it


@celery_app.task(name="send_email", autoretry_for=(OSError,), retry_backoff=True, retry_backoff_max=600, max_retries=8)
def send_email_task(email: str, subject: str, body: str) -> dict[str, str]:
    """Send an e-mail. Retried while the mail server is away."""
    mail.send(mail.compose(to=email, subject=subject, body=body))
    return {"status": "sent"}


@celery_app.task(
    name="send_welcome_email",
    autoretry_for=(OSError, OperationalError),
    retry_backoff=True,
    retry_backoff_max=600,
    max_retries=8,
)
def send_welcome_email(user_id: int, db: DB = INJECTED) -> dict[str, str]:
    """Welcome a new user, once."""
    user = User.get(db, id=user_id)
    if user is None:
        return {"status": "no such user"}
    if user.welcomed_at is not None:
        return {"status": "sent before"}
    # If it is sent twice after all, the same id lets mail programs show it once.
    message_id = f"<welcome-{user.id}-{user.created_at.timestamp():.0f}@bookstore.localhost>"
    body = WELCOME.format(name=user.name)
    mail.send(mail.compose(to=user.email, subject="Welcome to the bookstore", body=body, message_id=message_id))
    user.welcomed_at = now()
    db.commit()
    return {"status": "sent"}


@celery_app.task(name="process_data")
def process_data_task(data_id: int) -> dict[str, int]:
    """Process data asynchronously."""
    return {"processed": data_id}


@celery_app.task(base=RetryTask, name="process_payment")
def process_payment_task(payment_id: int) -> None:
    """Process a payment, with automatic retry."""


@celery_app.task(name="divide")
def divide(x: float, y: float) -> float:
    """Divide, taking a while over it.

    Raises:
        ZeroDivisionError: `y` is zero.
    """
    time.sleep(DIVISION_SECONDS)
    return x / y


@celery_app.task(
    name="import_books", autoretry_for=(OperationalError, StaleDataError), retry_backoff=True, max_retries=5
)
def import_books(import_id: str, db: DB = INJECTED) -> dict[str, Any]:
    """Import the books of an uploaded file, and return the report."""
    return importing.run(db, import_id)


@celery_app.task(name="clear_uploads")
def clear_uploads() -> int:
    """Remove uploaded files that nobody came back for, and return their number."""
    return uploads.clear()
