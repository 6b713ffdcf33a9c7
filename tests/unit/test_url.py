"""A server's URL in each dialect that people write, and in each that libraries want."""

from collections.abc import Callable

import pytest

from backburner.errors import ConfigError
from backburner.redis.client import aconnect, connect
from backburner.redis.url import ServerURL, for_prefix, mask_password


@pytest.mark.parametrize(
    ("written", "redis_py", "celery"),
    [
        ("redis://localhost", "redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("valkey://host:1/2", "redis://host:1/2", "redis://host:1/2"),
        ("redis://:secret@host", "redis://:secret@host:6379/0", "redis://:secret@host:6379/0"),
        ("redis://u%40x:p%2F@host", "redis://u%40x:p%2F@host:6379/0", "redis://u%40x:p%2F@host:6379/0"),
        ("redis://[::1]:7/3", "redis://[::1]:7/3", "redis://[::1]:7/3"),
        ("redis://host?db=4", "redis://host:6379/4", "redis://host:6379/4"),
        ("redis://host?protocol=3", "redis://host:6379/0?protocol=3", "redis://host:6379/0?protocol=3"),
        ("redis://host?username=u&password=p%2F", "redis://u:p%2F@host:6379/0", "redis://u:p%2F@host:6379/0"),
        ("rediss://host", "rediss://host:6379/0", "rediss://host:6379/0?ssl_cert_reqs=required"),
        (
            "rediss://host?ssl_cert_reqs=CERT_NONE",
            "rediss://host:6379/0?ssl_cert_reqs=none",
            "rediss://host:6379/0?ssl_cert_reqs=none",
        ),
        ("valkeys://host", "rediss://host:6379/0", "rediss://host:6379/0?ssl_cert_reqs=required"),
        ("unix:///run/v.sock", "unix:///run/v.sock?db=0", "redis+socket:///run/v.sock?virtual_host=0"),
        ("valkey+unix:///run/v.sock", "unix:///run/v.sock?db=0", "redis+socket:///run/v.sock?virtual_host=0"),
        (
            "redis+socket://:pw@/run/v.sock?virtual_host=2",
            "unix://:pw@/run/v.sock?db=2",
            "redis+socket://:pw@/run/v.sock?virtual_host=2",
        ),
    ],
)
def test_each_dialect_is_read_and_written(written: str, redis_py: str, celery: str) -> None:
    server = ServerURL.parse(written)
    assert server.redis_url == redis_py
    assert server.celery_url == celery
    assert ServerURL.parse(server.celery_url) == server or server.tls
    assert ServerURL.parse(server.redis_url) == server


def test_sentinels_are_read_and_written() -> None:
    server = ServerURL.parse("redis+sentinel://:pw@one,two:5/mymaster/3")
    assert server.sentinels == (("one", 26379), ("two", 5))
    assert (server.master, server.database, server.password) == ("mymaster", 3, "pw")
    assert server.celery_url == "sentinel://:pw@one:26379/3;sentinel://:pw@two:5/3"
    assert server.celery_options == {"master_name": "mymaster"}
    assert server.masked == "redis+sentinel://one:26379,two:5/mymaster/3"
    assert ServerURL.parse("rediss+sentinel://one/mymaster").tls


def test_clusters_are_read_and_their_keeper_of_a_prefix_is_meant() -> None:
    server = ServerURL.parse("rediss+cluster://me:pw@one,two:5/0?ssl_ca_certs=ca.crt")
    assert server.nodes == (("one", 6379), ("two", 5))
    assert (server.username, server.password, server.tls, server.slot) == ("me", "pw", True, None)
    assert server.masked == "rediss+cluster://one:6379,two:5"
    for url in ("redis+cluster://one", "redis+cluster://one?protocol=3"):
        server = ServerURL.parse(for_prefix(url, "shop:{cache}:books:"))
        assert server.slot == 9427  # CLUSTER KEYSLOT {cache}
    assert for_prefix("redis://one", "cache:") == "redis://one"
    assert for_prefix("memory://", "cache:") == "memory://"


@pytest.mark.parametrize("prefix", ["cache:", "{}cache:", "cache}{:", "{cache:"])
def test_a_prefix_that_a_cluster_would_spread_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError, match="has no hash tag"):
        for_prefix("redis+cluster://one", prefix)


def test_a_cluster_is_refused_where_its_node_cannot_be_known() -> None:
    with pytest.raises(ConfigError, match="CACHE_URL"):
        _ = ServerURL.parse("redis+cluster://one").celery_url
    for client in (connect, aconnect):
        with pytest.raises(ConfigError, match="a cluster is for caches"):
            client("redis+cluster://:secret@one", timeout=1)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://:secret@localhost",
        "redis://:secret@localhost/books",
        "redis://:secret@localhost:port",
        "redis://:secret@localhost:99999",
        "unix://",
        "redis+sentinel://:secret@one,two",
        "redis+sentinel://:secret@one:port/mymaster",
        "redis+cluster://",
        "redis+cluster://:secret@one:port",
        "redis+cluster://:secret@one/3",
        "redis+cluster://:secret@one?slot=many",
    ],
)
def test_nonsense_is_refused_with_examples_and_without_the_password(url: str) -> None:
    with pytest.raises(ConfigError, match="redis://localhost:6379/0") as caught:
        ServerURL.parse(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("character", "/?#[")
@pytest.mark.parametrize(
    "url", ["redis://:12{}secret@host:6379/0", "redis+sentinel://:12{}secret@one/m", "unix://:12{}secret@/run/v.sock"]
)
def test_a_password_that_must_be_encoded_is_told_as_such_and_not_shown(url: str, character: str) -> None:
    with pytest.raises(ConfigError, match="must be percent-encoded, or put into REDIS_PASSWORD") as caught:
        ServerURL.parse(url.format(character))
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="must be percent-encoded") as caught:
        ServerURL.parse(url.format(f"{character}x]"))
    assert "secret" not in str(caught.value)


def test_an_at_sign_that_is_no_passwords_end_is_taken_as_it_is() -> None:
    assert ServerURL.parse("unix:///run/a@b.sock").socket_path == "/run/a@b.sock"
    assert ServerURL.parse("redis://host?client_name=a@b").options == (("client_name", "a@b"),)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://host/0?foo=bar", "there is no option 'foo'; there are client_name, "),
        ("redis+sentinel://one/m?decode_responses=1", "no option 'decode_responses'"),
        ("redis+cluster://one?foo=bar", "no option 'foo'"),
        ("redis://host?socket_timeout=abc", "socket_timeout"),
        ("rediss://host?ssl_cert_reqs=maybe", "ssl_cert_reqs is required, optional, none"),
        ("redis://host?ssl_ca_certs=ca.crt", "'ssl_ca_certs' is for TLS, with rediss://"),
    ],
)
def test_options_are_looked_at_where_a_url_is_read(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ServerURL.parse(url)


@pytest.mark.parametrize("connected", [connect, aconnect])
@pytest.mark.parametrize("url", ["rediss://host", "rediss+sentinel://one/m", "rediss+cluster://one?slot=1"])
def test_a_file_that_a_url_names_must_be_there(url: str, connected: Callable[..., object]) -> None:
    url += "&" if "?" in url else "?"
    with pytest.raises(ConfigError, match="ssl_ca_certs is '/does/not/exist', where nothing is"):
        connected(f"{url}ssl_ca_certs=/does/not/exist", timeout=1)
    assert connected(f"{url}ssl_ca_certs={__file__}", timeout=1)


def test_numbers_among_the_options_of_sentinels_and_clusters_are_numbers() -> None:
    for url in ("redis+sentinel://one/m?socket_timeout=1.5", "redis+cluster://one?slot=1&socket_timeout=1.5"):
        assert connect(url, timeout=1).connection_pool.connection_kwargs["socket_timeout"] == 1.5


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://user:pw@host/0", "redis://user:***@host/0"),
        ("redis://:p@w:x@host/0", "redis://:***@host/0"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://host?db=1&password=pw&protocol=3", "redis://host?db=1&password=***&protocol=3"),
        ("postgresql://host/db?user=me&sslpassword=p@w", "postgresql://host/db?user=me&sslpassword=***"),
        ("redis://host:1?token=p@w&db=1", "redis://host:1?token=***&db=1"),
        ("redis://tok3n@host", "redis://***@host"),
        (":pw@host", ":***@host"),
        ("sqlite:///home/me@work/app.db", "sqlite:///home/me@work/app.db"),
        ("not a url", "not a url"),
        ("sentinel://:a@one;sentinel://:b@two", "sentinel://:***@one;sentinel://:***@two"),
    ],
)
def test_passwords_are_masked(url: str, masked: str) -> None:
    assert mask_password(url) == masked


@pytest.mark.parametrize(
    "url", ["redis://user:hunter2@host", "redis+sentinel://:hunter2@one/shop", "rediss://host?ssl_password=hunter2"]
)
def test_a_server_shows_no_password_in_tracebacks_and_debuggers(url: str) -> None:
    assert "hunter2" not in repr(ServerURL.parse(url))
