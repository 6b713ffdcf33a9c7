"""All bars at a glance, and plots: what the other scripts here wrote into results/, printed and drawn.

    python benchmarks/summary.py PREFIX      such as cache_, as `make bench-cache` does

Draws docs/images/bench-NAME.svg of each result that compares contenders. Measures nothing.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from harness import RESULTS, in_units

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "backburner"  # the same figures give the same file
mpl.rcParams["svg.fonttype"] = "none"  # text as text: a tenth of the size

from matplotlib import pyplot as plt  # noqa: E402  # after the choice of what to draw with

IMAGES = Path(__file__).parent.parent / "docs" / "images"
OURS, THEIRS = "#d9480f", "#adb5bd"
_NOT_OURS = (
    *("redis-py", "cashews", "aiocache", "fastapi-", "dogpile", "Django", "cache", "functools", "hishel"),
    *("constant", "no cache"),
    *("Celery", "celery-redis-plus", "taskiq", "huey", "saq", "dramatiq", "streaq", "arq", "rq"),
)


def bars(prefix: str) -> list[tuple[str, dict[str, Any]]]:
    return [
        (path.stem, bar)
        for path in sorted(RESULTS.glob(f"{prefix}*.json"))
        for bar in json.loads(path.read_text()).get("bars", ())
    ]


def draw(path: Path) -> None:
    """One row of bars for each comparison; the axis is logarithmic, since contenders differ by hundreds."""
    told = json.loads(path.read_text())
    tables = {
        title: {name: figure["median"] for name, figure in table.items()}
        for title, table in told.get("seconds", {}).items()
        if all(isinstance(figure, dict) and "median" in figure for figure in table.values())
    }
    if not tables:
        return
    heights = [len(table) for table in tables.values()]
    figure, axes = plt.subplots(
        len(tables), figsize=(9, sum(heights) * 0.26 + 0.75 * len(tables)), height_ratios=heights, squeeze=False
    )
    for axis, (title, table) in zip(axes[:, 0], tables.items(), strict=True):
        names = sorted(table, key=table.__getitem__, reverse=True)
        growth = all(name.endswith("entries") for name in names)
        colours = [THEIRS if name.startswith(_NOT_OURS) and not growth else OURS for name in names]
        drawn = axis.barh(names, [table[name] * 1e6 for name in names], color=colours)
        axis.bar_label(drawn, [in_units(table[name]) for name in names], padding=3, fontsize=8)
        axis.set_xscale("log")
        axis.margins(x=0.15)
        axis.set_title(title, loc="left", fontsize=10)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("microseconds, logarithmic", fontsize=8)
    figure.tight_layout()
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / f"bench-{path.stem}.svg", metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    prefix = sys.argv[1] if len(sys.argv) > 1 else ""
    for path in sorted(RESULTS.glob(f"{prefix}*.json")):
        draw(path)
    found = bars(prefix)
    print(f"\n{'':>8}  {'bar':<105} {'measured':>9}")
    for _, bar in found:
        print(
            f"{'' if bar['reached'] else 'MISSED':>8}  {bar['what'] + ': ' + bar['bar']:<105} {bar['measured']:>9.3g}"
        )
    missed = sum(not bar["reached"] for _, bar in found)
    print(f"\n{len(found) - missed} of {len(found)} bars reached")


if __name__ == "__main__":
    main()
