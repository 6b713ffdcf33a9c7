"""What caches score in the suite, counted as its own site does: a test passes only if those it depends on pass.

``python -m tests.http.conformance.tally`` measures ours and writes docs/http-conformance.md anew;
``--cache module.function`` measures another one, and only prints.
"""

import argparse
import os
import tomllib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from tests.http.conformance.suite import CHECKOUT, HERE, OURS, Suite
from tests.processes import ROOT

PAGE = ROOT / "docs" / "http-conformance.md"
KINDS = ("required", "optimal")
RELEASED = "only-in-the-released-suite"

Results = Mapping[str, Any]
"""Each test's id, and ``True`` or ``[error, message]``."""


class Score(NamedTuple):
    """How many tests of each kind passed."""

    required: int
    optimal: int


class Tally:
    """The results of one cache."""

    def __init__(self, tests: Mapping[str, Any], results: Results) -> None:
        self.tests, self.results = tests, results

    def passes(self, test: str) -> bool:
        """Whether a test passed, and all that it depends on."""
        return self.results.get(test) is True and self._is_judged(test)

    def _is_judged(self, test: str) -> bool:
        return all(map(self.passes, self.tests[test].get("depends_on", ())))

    @cached_property
    def score(self) -> Score:
        """How many passed."""
        return Score(*(sum(self.passes(test) for test in of_kind(self.tests, kind)) for kind in KINDS))

    @cached_property
    def failed(self) -> dict[str, str]:
        """Why each test failed, without those whose dependencies failed: these say nothing of their own."""
        return {
            test: ": ".join(self.results.get(test, ["not run"]))
            for kind in KINDS
            for test in of_kind(self.tests, kind)
            if self.results.get(test) is not True and self._is_judged(test)
        }


def of_kind(tests: Mapping[str, Any], kind: str) -> list[str]:
    """The ids of the tests of one kind; the third kind, ``check``, is neither right nor wrong."""
    return [name for name, test in tests.items() if test.get("kind", "required") == kind]


def expected_failures() -> dict[str, str]:
    """The tests of the suite in use that our cache is known to fail, each with the reason (failing.toml)."""
    listed = tomllib.loads((HERE / "failing.toml").read_text())
    return listed["failing"] if CHECKOUT in os.environ else {**listed["failing"], **listed[RELEASED]}


def published(suite: Suite) -> dict[str, Tally]:
    """The caches in front of servers whose results come with the suite, by name and version."""
    return {
        f"{cache['name']} {cache['version']}": Tally(suite.tests, results)
        for cache, results in suite.published
        if cache["type"] != "browser"
    }


def table(suite: Suite, name: str, tally: Tally) -> str:
    """The scores of a cache and of all published ones, best first, in Markdown."""
    totals = [len(of_kind(suite.tests, kind)) for kind in KINDS]
    scores = {other: results.score for other, results in published(suite).items()} | {f"**{name}**": tally.score}
    ranked = sorted(scores.items(), key=lambda item: item[1], reverse=True)
    rows = [f"| {cache} | {score.required} | {score.optimal} |" for cache, score in ranked]
    return "\n".join(["| cache | required, of {} | optimal, of {} |".format(*totals), "|---|--:|--:|", *rows])


def reasons() -> str:
    """All of failing.toml, in Markdown."""
    listed = tomllib.loads((HERE / "failing.toml").read_text())
    rows = [f"| `{test}` | {why} |" for table in listed.values() for test, why in table.items()]
    return "\n".join(["| test | why |", "|---|---|", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", help="puts a cache around an ASGI application, in place of ours")
    parser.add_argument("--show", metavar="TEST", help="show what one test sends and gets, and count nothing")
    options = parser.parse_args()
    with TemporaryDirectory() as workspace:
        suite = Suite.install(Path(workspace))
        with suite.gateway(options.cache or OURS) as url:
            if options.show:
                print(suite.show(url, options.show))
                return
            tally = Tally(suite.tests, suite.run(url))
        scores = table(suite, options.cache or "Backburner", tally)
    print(*(f"{test}: {why}" for test, why in tally.failed.items()), "", scores, sep="\n")
    if not options.cache:
        page = PAGE.read_text()
        page = filled(page, "checkout" if CHECKOUT in os.environ else "npm", scores)
        PAGE.write_text(filled(page, "failing", reasons()))


def filled(page: str, name: str, text: str) -> str:
    """A page with a text between the marks ``<!-- name -->`` and ``<!-- end -->``, in place of what was there."""
    before, mark, rest = page.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    assert end, f"the page has no place for {name}"
    return f"{before}{mark}{text}\n{end}{after}"


if __name__ == "__main__":
    main()
