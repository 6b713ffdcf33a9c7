"""``python -m backburner.cli.guard MARK``: outlives a killed `backburner dev`, and ends what that left running.

The parent holds the other end of standard input, which closes when the parent dies, however that happens. Whatever then
still runs is ended, except for the embedded server, which the next start takes over.
"""

import subprocess
import sys

from backburner.cli.family import Family

_PATIENCE = 3.0  # seconds for a worker to finish its jobs or return them to the queue


def post(family: Family) -> "subprocess.Popen[bytes]":
    """Start a guard. It leaves when its standard input is closed."""
    return subprocess.Popen(  # noqa: S603  # this very interpreter
        [sys.executable, "-P", "-m", "backburner.cli.guard", family.mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


if __name__ == "__main__":
    sys.stdin.buffer.read()
    Family(sys.argv[1]).end(_PATIENCE)
