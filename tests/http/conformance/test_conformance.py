"""Our cache in front of an origin, judged by the suite that judges the caches of the world."""

import pytest

from tests.http.conformance.suite import OURS, Suite
from tests.http.conformance.tally import PAGE, Tally, expected_failures, published, reasons

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return Suite.install(tmp_path_factory.mktemp("suite"))


@pytest.fixture(scope="module", params=["memory", "server"])
def ours(request: pytest.FixtureRequest, suite: Suite) -> Tally:
    """What our cache scores, in memory or on a server with copies in memory."""
    url = "memory://" if request.param == "memory" else request.getfixturevalue("valkey").url
    with suite.gateway(OURS, CACHE_URL=url) as gateway:
        tally = Tally(suite.tests, suite.run(gateway))
        surprises = tally.failed.keys() - expected_failures().keys()
        late = {test: True for test in surprises if suite.passes_alone(gateway, test)}
        return Tally(suite.tests, {**tally.results, **late})


@pytest.mark.slow
def test_no_other_test_fails_than_is_known_and_none_that_is_passes(ours: Tally) -> None:
    expected = expected_failures().keys() & ours.tests.keys()
    assert {test: why for test, why in ours.failed.items() if test not in expected} == {}
    assert expected - ours.failed.keys() == set(), "take these out of failing.toml"


@pytest.mark.slow
def test_no_published_cache_passes_more_tests(ours: Tally, suite: Suite) -> None:
    others = [tally.score for tally in published(suite).values()]
    assert ours.score.required > max(score.required for score in others)
    assert ours.score.optimal > max(score.optimal for score in others)


def test_the_page_lists_every_test_that_fails_and_why() -> None:
    assert reasons() in PAGE.read_text(), "python -m tests.http.conformance.tally writes it"
