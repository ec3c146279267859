"""Telling systemd how far the start is: sd_notify(3), where NOTIFY_SOCKET is set."""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger("specbreaker.supervise")


def notify(state: str) -> None:
    """Send one state, such as "READY=1". A failure is logged: a start must not fail because nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.connect(address)
            sender.sendall(state.encode())
    except OSError as error:
        log.warning("NOTIFY_SOCKET: %s", error)
