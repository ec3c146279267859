"""Socket activation: the listening socket may come from outside."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest
from served import SPECBREAKER, activated, activation, clean_environment
from upstreams import answering, opened, upstream

from proxy.activation import inherited_socket
from proxy.config import ConfigError


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "x"},
        {"LISTEN_FDS": "0", "LISTEN_PID": str(os.getpid())},
    ],
)
def test_sockets_meant_for_another_process_are_not_taken(environment: dict[str, str]) -> None:
    assert inherited_socket(environment) is None
    assert environment == {}, "a child must not take them for its own"


def test_more_than_one_socket_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 sockets were passed on"):
        inherited_socket({"LISTEN_FDS": "2", "LISTEN_PID": str(os.getpid())})


async def test_it_serves_on_the_socket_it_was_given() -> None:
    async with upstream(answering([])) as url:
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            activated(listener, "--upstream", url, "--listen", "127.0.0.1:1") as process,
        ):
            assert process.url == f"http://127.0.0.1:{listener.getsockname()[1]}"
            async with opened(process.url) as client:
                await client.post()
                assert (await client.head())[0] == 200


def test_something_else_than_a_listening_socket_is_one_line_and_status_2() -> None:
    with socket.socket() as not_listening:
        done = subprocess.run(
            [*activation(not_listening), SPECBREAKER, "serve", "--upstream", "http://127.0.0.1:9"],
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(SPECBREAKER_SERVER__ADMIN="127.0.0.1:0"),
            pass_fds=[not_listening.fileno()],
            timeout=60,
        )
    assert done.returncode == 2
    assert done.stderr == "specbreaker: LISTEN_FDS: descriptor 3 is not a listening TCP socket (ListenStream=)\n"
