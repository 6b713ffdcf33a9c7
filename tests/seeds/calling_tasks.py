"""Calling tasks, typed in from a guide. A worker is running."""

from app.workers.tasks import process_data_task, process_payment_task, send_email_task

# Call task asynchronously
result = send_email_task.delay("user@example.com", "Subject", "Body")

# Get task result (blocking)
task_result = result.get(timeout=10)
assert task_result == {"status": "sent"}

assert process_data_task.delay(7).get(timeout=10) == {"processed": 7}
assert process_payment_task.delay(7).get(timeout=10) is None
assert send_email_task.name == "send_email"
assert process_data_task.name == "process_data"
assert process_payment_task.name == "process_payment"

# Call task with ETA (execute at specific time)
from datetime import datetime, timedelta

later = send_email_task.apply_async(
    args=["user@example.com", "Subject", "Body"], eta=datetime.utcnow() + timedelta(hours=1)
)

# Call task with countdown (execute after delay)
still_later = send_email_task.apply_async(
    args=["user@example.com", "Subject", "Body"],
    countdown=300,  # Execute after 5 minutes
)
assert later.state == still_later.state == "PENDING"

soon = send_email_task.apply_async(
    args=["user@example.com", "Soon", "Body"], eta=datetime.utcnow() + timedelta(seconds=1)
)
assert soon.get(timeout=10) == {"status": "sent"}
