"""Listening, and answering until the process is told to stop."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from pelagia.errors import OptionError

__all__ = ["address_of", "create_server", "listen", "serve"]

#: Connections that the system keeps waiting.
_BACKLOG = 128

#: Seconds that requests in work have to end when the service is told to stop, and that an idle connection is kept.
_STOP_SECONDS, _IDLE_SECONDS = 10, 15


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections.

    Raises:
        OptionError: the address is not one of this machine, or the port is taken.
    """
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(place[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OptionError(f"cannot listen on {host}, port {port} ({reason}); choose another with --host or --port") from error


def address_of(listening: socket.socket) -> str:
    """The address to open in a browser; a service on all addresses is reached by localhost, among others."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def create_server(app: ASGIApp) -> uvicorn.Server:
    """A server of the application, whose log tells of failures only."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=_STOP_SECONDS,
    )
    return uvicorn.Server(config)


def serve(app: ASGIApp, listening: socket.socket) -> None:
    """Answer until SIGINT or SIGTERM; requests in work are answered first."""
    server = create_server(app)
    with _stopped_by_signals(server):
        server.run(sockets=[listening])


@contextmanager
def _stopped_by_signals(server: uvicorn.Server) -> Iterator[None]:
    """The server hands on the signals that stopped it, which then are to do nothing; before it listens to them, they stop it."""

    def stop(*_: Any) -> None:
        server.should_exit = True

    before = {kind: signal.signal(kind, stop) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
