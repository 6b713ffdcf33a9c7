"""One view enqueues, the other shows what became of it."""

import json

from django.http import HttpRequest, JsonResponse
from django.urls import reverse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST

from backburner.errors import UnknownJob
from orders.tasks import charge_card


@csrf_exempt  # for clients that send JSON, not for browsers' forms
@require_POST
def place_order(request: HttpRequest) -> JsonResponse:
    try:
        order = json.loads(request.body)
        card, cents = str(order["card"]), int(order["cents"])
    except (ValueError, KeyError, TypeError):
        usage = 'send JSON such as {"card": "4242424242424242", "cents": 999}'
        return JsonResponse({"error": usage}, status=400)
    job = charge_card.delay(card, cents)
    return JsonResponse({"id": job.id, "url": reverse("job", args=[job.id])}, status=202)


@require_GET
def show_job(_request: HttpRequest, job_id: str) -> JsonResponse:
    try:
        job = charge_card.AsyncResult(job_id).snapshot()
    except UnknownJob:
        return JsonResponse({"error": f"there is no job {job_id}"}, status=404)
    return JsonResponse({"id": job.id, "state": job.state, "result": job.result, "error": job.error})
