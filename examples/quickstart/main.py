"""FastAPI and Celery in one file: one request enqueues, a worker divides, another request asks how it went.

REDIS_URL, or REDIS_HOST and REDIS_PORT, say where the server is; without them it is localhost:6379.
"""

import time
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response, status
from pydantic import BaseModel

from backburner import Celery, Settings
from backburner.errors import UnknownJob

app = FastAPI(title="Backburner quickstart")
celery = Celery("main", settings=Settings())


class Division(BaseModel):
    x: float
    y: float


@celery.task(name="divide")
def divide(x: float, y: float) -> float:
    time.sleep(1)  # stands for work that takes long
    return x / y


@app.get("/")
async def root() -> dict[str, str]:
    return {"message": "POST x and y to /divide, then follow the link in the answer"}


@app.post("/divide", status_code=status.HTTP_202_ACCEPTED)
async def start_division(division: Division, request: Request, response: Response) -> dict[str, str]:
    job = await divide.adelay(division.x, division.y)
    response.headers["Location"] = str(request.url_for("job_status", job_id=job.id))
    return {"id": job.id, "url": response.headers["Location"]}


@app.get("/jobs/{job_id}")
async def job_status(job_id: str) -> dict[str, Any]:
    try:
        job = await celery.AsyncResult(job_id).asnapshot()
    except UnknownJob as error:
        raise HTTPException(status.HTTP_404_NOT_FOUND, f"There is no job {job_id}") from error
    return {"id": job.id, "state": job.state, "result": job.result, "error": job.error}
