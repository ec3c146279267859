"""A serving socket that was opened by someone else: systemd's socket activation, sd_listen_fds(3).

The opener keeps the socket, so connections wait in its queue while one process ends and the next one starts, and an
old process may finish its answers while a new one takes the new requests.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from typing import Final

from proxy.config import ConfigError

FIRST_DESCRIPTOR: Final = 3
"""SD_LISTEN_FDS_START."""
VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def inherited_socket(environment: MutableMapping[str, str]) -> socket.socket | None:
    """The listening socket that this process was given, or None; the variables that told of it are removed.

    Raises ConfigError where there is more than one, or one that does not listen.
    """
    pid, count, _ = (environment.pop(name, None) for name in VARIABLES)
    if pid != str(os.getpid()) or count in (None, "0"):
        return None
    if count != "1":
        raise ConfigError(f"LISTEN_FDS: {count} sockets were passed on, and only the serving port may be (write one)")
    try:
        inherited = socket.socket(fileno=FIRST_DESCRIPTOR)
    except OSError as error:
        raise ConfigError(f"LISTEN_FDS: descriptor {FIRST_DESCRIPTOR}: {error.strerror}") from None
    listens = inherited.type == socket.SOCK_STREAM and inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if not listens or inherited.family not in (socket.AF_INET, socket.AF_INET6):
        raise ConfigError(f"LISTEN_FDS: descriptor {FIRST_DESCRIPTOR} is not a listening TCP socket (ListenStream=)")
    inherited.set_inheritable(False)
    return inherited
