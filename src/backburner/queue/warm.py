"""An interpreter that has imported what never changes, and waits to become a worker.

Most of a worker's start is spent importing Celery and other libraries. `supervised` runs this file's text with
``python -c``, so that nothing of Backburner or of the user's program is imported before the word is given, and
all of that is then up to date.
"""

import contextlib
import importlib
import json
import os
import runpy
import sys

GO = b"go\n"


def main() -> None:
    """Import, wait for GO, then run the command that the supervisor was started with."""
    order = json.loads(sys.argv[1])
    for name in order["preload"]:
        with contextlib.suppress(Exception):  # it may need something that the program sets up first
            importlib.import_module(name)
    if os.read(order["orders"], len(GO)) != GO:
        return
    # Python takes compiled code for up to date if the source has the same size and was saved in the same second.
    sys.dont_write_bytecode = True
    sys.argv = order["argv"]
    sys.path[0] = order["path"]
    if order["module"]:
        runpy.run_module(order["module"], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
