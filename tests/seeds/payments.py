"""A task that retries by its base class, typed in from a guide. ``celery -A payments worker`` runs it."""

from celery import Task

from app.core.celery_app import celery_app


class RetryTask(Task):
    """Task with automatic retry on failure."""

    autoretry_for = (Exception,)
    retry_kwargs = {"max_retries": 3, "countdown": 0.1}


@celery_app.task(base=RetryTask, bind=True, name="charge_payment")
def charge_payment_task(self, payment_id: int, failures: int):
    """Process payment with automatic retry."""
    if self.request.retries < failures:
        raise ConnectionError(f"no answer for payment {payment_id}")
    return {"payment": payment_id, "attempts": self.request.retries + 1}
