"""Background jobs: Celery with other defaults, and a producer, a transport, a result backend and a pool of our own.

Everything that Celery documents works. A job's way, from the call that enqueues it to its result:

    app, task, defaults       the Celery application, its tasks, its settings; `decoration` types ``@app.task``
    django                    the base class of tasks in Django projects
    arguments, dependencies   what a task's function takes, `lifespan` what its process has, `coroutines` calls it
    options                   what is wrong with those of a call
    servers, keys             URLs in Celery's words; names of keys on the servers

    producer, template        enqueueing: which calls need nothing special, and the messages made for them
    sending, delivery         how messages reach the server: `enqueue.lua`, over connections that callers share
    job_record, canvas        what that leaves of each job, and of those that a canvas enqueues later
    publishing, amqp          Celery's own path, bounded; RabbitMQ
    deadline, executor        the time budget of a call; threads for what blocks

    transport                 how workers take messages: leased, delayed, recovered
    pool, prefork, loop       ``--pool=asyncio``; Celery's pool of processes; the event loop of the other pools
    stacks                    Celery's stacks of running tasks, kept apart by coroutine
    cancellation, recording   ending a job; making sure that its failure is recorded
    hearing                   remote control of greenlets, on a connection that may be lost
    shutdown                  signals that end a worker, where its jobs need the thread that gets them
    ending, scaling           what a worker says that ends because of a wrong setting; ``--autoscale``
    limits                    rate limits that many jobs wait for
    failed                    jobs that could not be done: looked at, tried again, let go

    backend, listener         storing results; hearing of them on one connection
    waiting, callbacks        threads that wait for results; what ``then`` is given
    settlement, carrying      `settle.lua`; results on their way from child processes; `starting`: the state STARTED
    result, outcome, stream   `Job`; waiting for its end; its events
    reporting                 `progress` and `log`, called by running tasks
    http                      jobs as resources of a FastAPI application

    reload, fleet             ``--reload`` and ``--processes``: the supervisor; `supervised`, `warm`: its workers
    health, announcing        ``--health-port``; events for Flower
"""

from backburner.extras import extra

with extra("celery", needed_by="backburner.queue"):
    from backburner.queue.app import Celery
    from backburner.queue.dependencies import INJECTED
    from backburner.queue.failed import FailedJob, FailedJobs
    from backburner.queue.lifespan import Lifespan
    from backburner.queue.reporting import log, progress
    from backburner.queue.result import Job, JobGroup, JobSnapshot, Progress
    from backburner.queue.stream import JobEvent

__all__ = [
    "INJECTED",
    "Celery",
    "FailedJob",
    "FailedJobs",
    "Job",
    "JobEvent",
    "JobGroup",
    "JobSnapshot",
    "Lifespan",
    "Progress",
    "log",
    "progress",
]
