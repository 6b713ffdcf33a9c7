"""The servers that slow tests run on are what they should be."""

import psycopg
import pytest
import redis

pytestmark = pytest.mark.slow


def test_redis_is_seven_or_newer_and_empty(redis7_url: str) -> None:
    with redis.Redis.from_url(redis7_url) as client:
        info = client.info("server")
        assert int(info["redis_version"].split(".")[0]) >= 7
        assert "valkey_version" not in info
        assert client.dbsize() == 0


def test_each_test_has_an_empty_postgres_database_of_its_own(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        tables = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
        assert tables == (0,)
        assert connection.info.server_version >= 130000
