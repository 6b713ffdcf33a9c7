"""Work that no customer should wait for. The cards behave like the test cards of a payment provider."""

import time

from celery import Task, shared_task

DECLINED = "4000000000000002"
PROVIDER_BUSY_AT_FIRST = "4000000000000119"


class CardDeclinedError(Exception):
    """The bank does not pay."""


class ProviderBusyError(Exception):
    """The payment provider asks to come back later."""


@shared_task(bind=True, max_retries=3)
def charge_card(self: Task, card: str, cents: int) -> dict[str, object]:
    time.sleep(1)  # stands for a slow payment provider
    if card == DECLINED:
        raise CardDeclinedError(f"the card ending in {card[-4:]} was declined")
    if card == PROVIDER_BUSY_AT_FIRST and self.request.retries == 0:
        raise self.retry(exc=ProviderBusyError("the payment provider is busy"), countdown=1)
    return {"paid": cents, "attempts": self.request.retries + 1}
