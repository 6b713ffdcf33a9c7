"""What is done in forked children, and systems that have none."""

import gc
import os
import subprocess
import sys
import textwrap
import weakref

import pytest

from backburner.forking import in_forked_child, renew_in_forked_child


def test_it_is_called_in_a_forked_child_before_anything_else_and_nowhere_else() -> None:
    calls: list[int] = []
    in_forked_child(lambda: calls.append(os.getpid()))
    child = os.fork()
    if not child:
        os._exit(calls != [os.getpid()])
    assert os.waitpid(child, 0)[1] == 0
    assert not calls


def test_an_object_is_renewed_in_a_forked_child_and_not_kept_alive_for_that() -> None:
    class Server:
        pid = os.getpid()

        def renew(self) -> None:
            self.pid = os.getpid()

    server = Server()
    renew_in_forked_child(server, Server.renew)
    child = os.fork()
    if not child:
        os._exit(server.pid != os.getpid())
    assert os.waitpid(child, 0)[1] == 0
    assert server.pid == os.getpid()

    alive = weakref.ref(server)
    del server
    gc.collect()
    assert alive() is None


@pytest.mark.slow
def test_all_can_be_imported_and_a_task_runs_where_there_are_no_forks() -> None:
    program = """
        import os, sys

        del os.register_at_fork, os.fork
        sys.modules["resource"] = None  # which Windows has not, either

        import backburner.http
        import backburner.queue.http
        from backburner import Cache, Celery

        assert Cache("memory://").remember("key", ttl=60, callback=lambda: 1) == 1
        app = Celery("windows", broker="memory://", backend="cache+memory://")

        @app.task
        async def double(number):
            return 2 * number

        assert double.apply((2,)).get() == 4
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)
