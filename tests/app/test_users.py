"""Registering, logging in and out, and what a session lets one do."""

import re
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import httpx2
import pytest

from app import login
from backburner import Cache
from tests.app.bookstore import PASSWORD, Bookstore


def log_in(client: httpx2.Client, email: str, password: str = PASSWORD) -> httpx2.Response:
    return client.post("/sessions", json={"email": email, "password": password})


def test_a_new_user_is_told_everything_but_the_password(store: Bookstore, client: httpx2.Client) -> None:
    user = store.register(client)
    assert user.keys() == {"id", "email", "name", "created_at", "welcome_email"}
    assert user["welcome_email"] == "queued"
    assert user["created_at"].endswith("Z")


@pytest.mark.slow
def test_a_crowd_that_registers_keeps_nobody_from_reading(store: Bookstore, client: httpx2.Client) -> None:
    with ThreadPoolExecutor(60) as threads:
        crowd = [threads.submit(store.register, client) for _ in range(60)]
        next(as_completed(crowd))
        assert client.get("/").status_code == 200
        assert sum(registered.done() for registered in crowd) < 15  # all have been sent, and most still wait


def test_others_see_name_and_date_only(store: Bookstore, client: httpx2.Client) -> None:
    user = store.register(client)
    seen = client.get(f"/users/{user['id']}").json()
    assert seen == {"id": user["id"], "name": user["name"], "created_at": user["created_at"]}
    assert client.get("/users/2000000000").status_code == 404


def test_an_email_belongs_to_one_user_whatever_its_case(store: Bookstore, client: httpx2.Client) -> None:
    email = store.register(client)["email"]
    again = client.post("/users", json={"email": email.upper(), "name": "Other", "password": PASSWORD})
    assert again.status_code == 409
    assert log_in(client, email.upper()).status_code == 201


@pytest.mark.parametrize(
    "wrong",
    [
        {"email": "nobody"}, {"email": "a@b.c\r\nBcc: all@example.org"}, {"name": ""}, {"name": "a\nb\x00"},
        {"name": "\u0958" * 60}, {"password": "short"}, {"password": "x" * 201}, {"admin": True},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_registrations_are_refused_without_repeating_the_password(
    client: httpx2.Client, wrong: dict[str, Any]
) -> None:
    new = {"email": "new@example.org", "name": "New", "password": PASSWORD, **wrong}
    answer = client.post("/users", json=new)
    assert answer.status_code == 422
    assert new["password"] not in answer.text


def test_a_control_character_in_an_email_is_no_bug_of_ours(client: httpx2.Client) -> None:
    assert log_in(client, "ada\x00@example.org").status_code == 422  # which PostgreSQL cannot even look for


def test_wrong_email_and_wrong_password_get_the_same_answer(store: Bookstore, client: httpx2.Client) -> None:
    email = store.register(client)["email"]
    wrong_password = log_in(client, email, "wrong password")
    wrong_email = log_in(client, "nobody@example.org")
    assert wrong_password.status_code == wrong_email.status_code == 401
    assert wrong_password.json() == wrong_email.json()
    assert "set-cookie" not in wrong_password.headers


def test_who_guesses_passwords_must_wait_and_the_owner_elsewhere_need_not(
    store: Bookstore, client: httpx2.Client
) -> None:
    email = store.register(client)["email"]
    guesses = [email, email.upper()] * 8
    # Of those that come at once a few more are tried than of those one after the other.
    with store.client(headers={"x-forwarded-for": "203.0.113.7"}) as guesser, ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda name: log_in(guesser, name, "a guess"), guesses))
        assert {answer.status_code for answer in answers} == {401, 429}
        refused = log_in(guesser, email)
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 6
    assert refused.json()["detail"] == "Too many wrong passwords."
    assert log_in(client, email).status_code == 201


def test_a_password_is_not_tried_on_one_account_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Cache("memory://")
    monkeypatch.setattr(login, "sessions", lambda: counted)
    for number in range(99):
        login.note_wrong_password(f"reader{number}@example.org", "203.0.113.8")
    assert not login.seconds_to_wait("ada@example.org", "203.0.113.8")
    login.note_wrong_password("reader99@example.org", "203.0.113.8")
    login.note_wrong_password("reader99@example.org", "203.0.113.8")
    assert login.seconds_to_wait("ada@example.org", "203.0.113.8") == 1
    assert not login.seconds_to_wait("ada@example.org", "203.0.113.9")


def test_who_knows_the_password_may_log_in_as_often_as_he_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Cache("memory://")
    monkeypatch.setattr(login, "sessions", lambda: counted)
    assert not any(login.seconds_to_wait("ada@example.org", "203.0.113.8") for _ in range(200))


def test_the_cookie_is_out_of_reach_for_scripts_and_other_sites(store: Bookstore, client: httpx2.Client) -> None:
    email = store.register(client)["email"]
    cookie = log_in(client, email).headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert "Secure" not in cookie
    elsewhere = client.post(
        "/sessions", json={"email": email, "password": PASSWORD}, headers={"host": "books.example.org"}
    )
    assert "Secure" in elsewhere.headers["set-cookie"]


def test_the_token_works_as_a_bearer_too(store: Bookstore, client: httpx2.Client) -> None:
    user = store.register(client)
    token = log_in(client, user["email"]).json()["token"]
    with store.client(headers={"authorization": f"Bearer {token}"}) as program:
        assert program.get("/users/me").json()["email"] == user["email"]


@pytest.mark.parametrize("token", ["x", "session:1", "0" * 5000])
def test_a_made_up_token_is_nobody(store: Bookstore, token: str) -> None:
    with store.client(headers={"authorization": f"Bearer {token}"}) as program:
        assert program.get("/users/me").status_code == 401


def test_logging_out_ends_the_session_in_the_server(store: Bookstore, client: httpx2.Client) -> None:
    user = store.register(client)
    token = log_in(client, user["email"]).json()["token"]
    assert client.get("/users/me").status_code == 200
    assert client.delete("/sessions/current").status_code == 204
    assert client.cookies.get("session") is None
    again = client.get("/users/me", headers={"authorization": f"Bearer {token}"})
    assert again.status_code == 401
    assert client.delete("/sessions/current").status_code == 204


def test_users_change_themselves_only(store: Bookstore, member: httpx2.Client, client: httpx2.Client) -> None:
    me = member.get("/users/me").json()
    other = store.register(client)
    assert member.patch(f"/users/{me['id']}", json={"name": "New Name"}).json() == {**me, "name": "New Name"}
    assert member.patch(f"/users/{other['id']}", json={"name": "Mine"}).status_code == 403
    assert member.patch("/users/2000000000", json={"name": "Mine"}).status_code == 403
    assert client.patch(f"/users/{me['id']}", json={"name": "Mine"}).status_code == 401
    assert member.patch(f"/users/{me['id']}", json={"email": other["email"]}).status_code == 409
    assert member.get("/users/me").json()["email"] == me["email"]


def test_a_new_password_ends_all_other_sessions(store: Bookstore, member: httpx2.Client) -> None:
    me = member.get("/users/me").json()
    with store.client() as phone:
        log_in(phone, me["email"])
        assert phone.get("/users/me").status_code == 200
        changed = member.patch(f"/users/{me['id']}", json={"password": "another good password"})
        assert changed.status_code == 200
        assert phone.get("/users/me").status_code == 401
        assert member.get("/users/me").status_code == 200
        assert log_in(phone, me["email"]).status_code == 401
        assert log_in(phone, me["email"], "another good password").status_code == 201


def test_who_logs_in_with_the_old_password_while_it_changes_is_out(store: Bookstore, member: httpx2.Client) -> None:
    me = member.get("/users/me").json()

    def until_refused() -> list[str]:
        tokens = []
        with store.client() as phone:
            while (answer := log_in(phone, me["email"])).status_code == 201:
                tokens.append(answer.json()["token"])
        return tokens

    with ThreadPoolExecutor() as threads:
        phones = [threads.submit(until_refused) for _ in range(3)]
        assert member.patch(f"/users/{me['id']}", json={"password": "another good password"}).status_code == 200
        tokens = [token for phone in phones for token in phone.result()]
    with store.client() as client:
        shown = [client.get("/users/me", headers={"Authorization": f"Bearer {token}"}) for token in tokens]
    assert all(answer.status_code == 401 for answer in shown)


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
    ],
    ids=str,
)
def test_what_another_site_sends_is_refused(reader: httpx2.Client, headers: dict[str, str]) -> None:
    assert reader.post("/books", json={"title": "t", "author": "a"}, headers=headers).status_code == 403
    assert reader.delete("/sessions/current", headers=headers).status_code == 403
    assert reader.get("/users/me", headers=headers).status_code == 200


def test_what_our_own_pages_send_is_taken(store: Bookstore, member: httpx2.Client) -> None:
    me = member.get("/users/me").json()
    for headers in ({"sec-fetch-site": "same-origin"}, {"origin": store.url}):
        answer = member.patch(f"/users/{me['id']}", json={"name": "Me"}, headers=headers)
        assert answer.status_code == 200


def test_no_route_ever_shows_a_hash(store: Bookstore, member: httpx2.Client) -> None:
    me = member.get("/users/me")
    public = member.get(f"/users/{me.json()['id']}")
    assert not re.search(r"argon2|hash|password", me.text + public.text)
