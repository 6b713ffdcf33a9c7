"""Clients of redis-py's, as this library builds them."""

from concurrent.futures import ThreadPoolExecutor

from backburner.redis.client import connect


def test_any_number_of_threads_can_wait_at_the_same_time(redis_url: str) -> None:
    client = connect(redis_url, timeout=5.0)
    with ThreadPoolExecutor(120) as threads:  # redis-py's own pools raise at the 101st
        waited = threads.map(lambda number: client.execute_command("BLPOP", f"list:{number}", 0.3), range(120))
        assert list(waited) == [None] * 120
    client.close()
