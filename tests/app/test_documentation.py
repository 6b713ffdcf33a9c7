"""The OpenAPI document, and that what it promises is what comes."""

from typing import Any

import httpx2
import pytest

from tests.app.bookstore import Bookstore


@pytest.fixture(scope="module")
def document(store: Bookstore) -> dict[str, Any]:
    with store.client() as client:
        answer: dict[str, Any] = client.get("/openapi.json").raise_for_status().json()
    return answer


def operations(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def test_every_route_has_a_tag_a_summary_and_a_description(document: dict[str, Any]) -> None:
    tags = {tag["name"] for tag in document["tags"]}
    for name, operation in operations(document):
        assert set(operation["tags"]) <= tags, name
        assert operation["summary"], name
        assert operation["description"], name


def test_every_error_is_documented_as_a_problem_with_an_example(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        for status, response in operation["responses"].items():
            if status >= "400" and "/health" not in name:
                (media_type,) = response["content"]
                assert media_type == "application/problem+json", (name, status)
                assert response["content"][media_type]["example"]["status"] == int(status)


def test_every_route_that_takes_input_documents_422(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        if operation.get("parameters") or operation.get("requestBody"):
            assert "422" in operation["responses"] or not _can_be_wrong(operation), name


def _can_be_wrong(operation: dict[str, Any]) -> bool:
    return "requestBody" in operation or any(p["in"] in {"path", "query"} for p in operation["parameters"])


def test_every_write_says_how_to_be_allowed(document: dict[str, Any]) -> None:
    open_to_all = {"POST /users", "POST /sessions"}
    for name, operation in operations(document):
        if not name.startswith("GET") and name not in open_to_all:
            assert {scheme for option in operation["security"] for scheme in option} == {"APIKeyCookie", "HTTPBearer"}
            assert "403" in operation["responses"], name


def test_the_examples_of_the_document_work(document: dict[str, Any], store: Bookstore, reader: httpx2.Client) -> None:
    properties = document["components"]["schemas"]["BookCreate"]["properties"]

    def example(field: dict[str, Any]) -> Any:
        return field["examples"][0] if "examples" in field else next(filter(None, map(_example_of, field["anyOf"])))

    new = {name: example(field) for name, field in properties.items()}
    answer = reader.post("/books", json=new)
    # The example is among the first books of the store.
    assert answer.status_code in {201, 409}, answer.text


def _example_of(schema: dict[str, Any]) -> Any:
    return schema.get("examples", [None])[0]


def test_the_upload_is_documented_as_a_file(document: dict[str, Any]) -> None:
    body = document["paths"]["/books/import"]["post"]["requestBody"]
    assert body["content"]["multipart/form-data"]["schema"]["properties"]["file"]["format"] == "binary"


def test_nothing_of_the_frameworks_own_errors_is_left(document: dict[str, Any]) -> None:
    assert "HTTPValidationError" not in document["components"]["schemas"]
    assert "Problem" in document["components"]["schemas"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "url", "status"),
    [("GET", "/nowhere", 404), ("PUT", "/books", 405), ("GET", "/books/x", 422), ("POST", "/users", 422)],
)
def test_errors_of_every_origin_have_one_shape(client: httpx2.Client, method: str, url: str, status: int) -> None:
    answer = client.request(method, url)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json().keys() >= {"title", "status", "detail"}


def test_the_first_page_leads_on(client: httpx2.Client) -> None:
    links = client.get("/").json()
    for link in (links["docs"], links["books"], links["health"]):
        assert client.get(link).status_code == 200
