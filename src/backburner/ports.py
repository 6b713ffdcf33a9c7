"""Finding free TCP ports on this machine. An answer may be outdated a moment later: bind the port at once."""

import errno
import socket
from collections.abc import Iterator
from contextlib import suppress

from backburner.errors import ConfigError

LOOPBACK = "127.0.0.1"

_HOW_MANY = 50


def free_ports(wanted: int | None, host: str = LOOPBACK) -> Iterator[int]:
    """Ports that are free right now: `wanted` and its successors, or with None whatever the system offers.

    Raises:
        ConfigError: the host is not an address of this machine.
    """
    if wanted is None:
        yield from (_any_free_port(host) for _ in range(_HOW_MANY))
    else:
        candidates = range(wanted, min(wanted + _HOW_MANY, 65536))
        yield from (port for port in candidates if _is_free(port, host))


def listen(wanted: int | None) -> socket.socket:
    """A listening socket on the loopback address. Connections queue up until somebody accepts them.

    Raises:
        ConfigError: there is no free port.
    """
    for port in free_ports(wanted):
        with suppress(OSError):  # somebody was faster
            return socket.create_server((LOOPBACK, port))
    raise ConfigError(f"no free port near {wanted}")


def claim(wanted: int | None, host: str = LOOPBACK) -> socket.socket:
    """Reserve the number of a free port for a program that is about to listen there: as long as the returned socket is
    open, no other caller of this function gets that number.

    Raises:
        ConfigError: there is no free port.
    """
    for port in free_ports(wanted, host):
        # UDP, so that it is in nobody's way. Whatever becomes of us, the system takes it back.
        token = socket.socket(_family(host), socket.SOCK_DGRAM)
        try:
            token.bind((host, port))
        except OSError:  # somebody else's program is about to listen
            token.close()
        else:
            return token
    raise ConfigError(f"no free port near {wanted}")


def _is_free(port: int, host: str) -> bool:
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno not in {errno.EADDRINUSE, errno.EACCES}:
                raise ConfigError(f"nothing can listen at {host!r}: {error.strerror}") from error
            return False
        return True


def _any_free_port(host: str) -> int:
    with socket.socket(_family(host)) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
