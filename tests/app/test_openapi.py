"""Requests made up from the OpenAPI document, right and wrong ones: answers are as documented, never an error of ours,
and the same whether or not they come from the cache."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import APIOperation, Case, GenerationMode, openapi
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from backburner import Cache
from backburner.redis.embedded import EmbeddedServer
from tests.app.bookstore import Bookstore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

KEPT = {"GET /books", "GET /books/{book_id}"}
CHECKS = [
    *(not_a_server_error, status_code_conformance, content_type_conformance),
    *(response_headers_conformance, response_schema_conformance),
]
OF_THE_MOMENT = {"date", "age", "cache-status"}


@pytest.fixture(scope="module")
def played_with(
    store: Bookstore, valkey: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bookstore]:
    """A bookstore whose books may be changed, or all be removed."""
    own = replace(store, directory=tmp_path_factory.mktemp("played-with"), redis_url=valkey.url)
    own.migrate()
    with own.api():
        yield own


@pytest.fixture
def session(played_with: Bookstore) -> dict[str, str]:
    """What shows that one is logged in."""
    with played_with.client() as client:
        played_with.log_in(client)
        return {"authorization": f"Bearer {client.cookies['session']}"}


def operations(store: Bookstore) -> Iterator[APIOperation]:
    for found in openapi.from_url(f"{store.url}/openapi.json").get_all_operations():
        yield found.ok()


def made_up(operation: APIOperation) -> st.SearchStrategy[Case]:
    """Requests as documented, and others."""
    wrong = [operation.as_strategy(GenerationMode.NEGATIVE)] if list(operation.iter_parameters()) else []
    return st.one_of(operation.as_strategy(), *wrong)


often = settings(max_examples=60, suppress_health_check=list(HealthCheck), database=None)


def test_reads_are_answered_as_documented_and_from_the_cache_as_without(
    played_with: Bookstore, session: dict[str, str]
) -> None:
    cache = Cache(played_with.redis_url)
    kept = set()
    for operation in operations(played_with):
        if operation.method != "get":
            continue

        @often
        @given(made_up(operation))
        def read(case: Case) -> None:
            cache.flush()
            cold, again = case.call(headers=session), case.call(headers=session)
            for answer in (cold, again):
                case.validate_response(answer, checks=CHECKS)
            assert told(cold) == told(again)
            assert not is_hit(cold)
            if is_hit(again):
                kept.add(case.operation.label)

        read()
    assert kept == KEPT
    cache.close()


def told(answer: Any) -> tuple[int, dict[str, list[str]], bytes]:
    headers = {name: values for name, values in answer.headers.items() if name not in OF_THE_MOMENT}
    return answer.status_code, headers, answer.content


def is_hit(answer: Any) -> bool:
    return "; hit" in ",".join(answer.headers.get("cache-status", []))


def test_writes_are_answered_as_documented(played_with: Bookstore, session: dict[str, str]) -> None:
    for operation in operations(played_with):
        if operation.method == "get":
            continue

        @often
        @given(made_up(operation))
        def write(case: Case) -> None:
            case.validate_response(case.call(headers=session), checks=CHECKS)

        write()
