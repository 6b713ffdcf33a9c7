"""The bookstore's web application: ``uvicorn app.main:app``."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import Depends, FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse

from app import problems
from app.api import books, health, jobs, kept_responses, sessions, users
from app.api.deps import refuse_other_sites
from app.core.cache import cache, close_caches
from app.seed import fill_empty_store
from backburner.http import CacheMiddleware

IMPORT_PAGE = Path(__file__).with_name("import.html")

DESCRIPTION = """
A small bookstore that shows how to use Backburner: reads come from the cache, long work is done by jobs.

**Try it:** `POST /users` to register, `POST /sessions` to log in, then the padlocks below are open to you.
Errors of every kind have one shape, `application/problem+json`.
"""

TAGS = [
    {
        "name": "books",
        "description": "Everybody reads, users write. Reads are cached; a write is seen by the next read.",
    },
    {"name": "users", "description": "Register, read, change oneself."},
    {"name": "sessions", "description": "Log in and out."},
    {"name": "jobs", "description": "Work in the background: state, progress, result."},
    {"name": "health", "description": "For operators."},
]


def create_app() -> FastAPI:
    """Build the application."""
    app = FastAPI(
        title="The Bookstore",
        description=DESCRIPTION,
        version="0.1.0",
        openapi_tags=TAGS,
        lifespan=_lifespan,
        dependencies=[Depends(refuse_other_sites)],
        responses=problems.problems(500),
        generate_unique_id_function=lambda route: route.name,
    )
    problems.install(app)
    app.add_middleware(CacheMiddleware, cache=cache(), rules={"/books*": kept_responses.POLICY, "*": None})
    for resource in (books, users, sessions, jobs, health):
        app.include_router(resource.router)

    @app.get("/import", include_in_schema=False)
    def show_import() -> FileResponse:
        """A page to import books with."""
        return FileResponse(IMPORT_PAGE)

    @app.get("/", tags=["health"], summary="Where to go from here")
    def read_root() -> dict[str, str]:
        """The first page."""
        return {"name": "The Bookstore", "docs": "/docs", "books": "/books", "import": "/import", "health": "/health"}

    return app


@asynccontextmanager
async def _lifespan(_app: FastAPI) -> AsyncIterator[None]:
    await run_in_threadpool(fill_empty_store)
    yield
    await close_caches()


app = create_app()
