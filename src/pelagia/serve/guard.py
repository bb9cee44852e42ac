"""Who may ask: programs, and pages of the service itself; not pages of other sites that a browser has open.

A page of another site can send a request to an address that only this machine reaches. Two rules keep it out. A request that
changes or costs something and that states where it comes from (`Origin`, `Sec-Fetch-Site`) must come from the service's own page.
And `Host` must be a name of the service: by DNS rebinding a site can give its own name the address 127.0.0.1, and its pages are
then of one origin with the service, but they still call it by that name.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pelagia.serve.refusals import Refusal

__all__ = ["Guard", "is_loopback"]

#: Methods by which a page only looks.
_SAFE = {"GET", "HEAD", "OPTIONS"}

#: Everything the page needs comes from the service; nobody shows it in a frame; no answer is kept.
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}


class Guard:
    """An ASGI application that refuses what `app` is not to see, and adds what browsers are to obey.

    Args:
        app: what answers.
        host: the address that the service listens on. On a loopback address only such addresses and `localhost` are its names,
            elsewhere every address and the name of the machine.
        names: further names.
    """

    def __init__(self, app: ASGIApp, host: str, names: tuple[str, ...] = ()) -> None:
        self._app = app
        self._local = is_loopback(host)
        own = (host, *names) if self._local else (host, socket.gethostname(), *names)
        self._names = {name.lower().strip("[]") for name in ("localhost", *own)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def add_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        reason = self._refused(scope["method"], Headers(scope=scope))
        app = self._app if reason is None else Refusal(403, "Forbidden", reason).response
        await app(scope, receive, add_headers)

    def _refused(self, method: str, headers: Headers) -> str | None:
        host = headers.get("host", "").lower()
        name = _name(host)
        if not self._knows(name):
            return f"{name or 'a request without Host'} is no name of this service; allow it with --allow-host"
        if method in _SAFE:
            return None
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host:
            return "pages of other sites may not use this service"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return "pages of other sites may not use this service"
        return None

    def _knows(self, name: str) -> bool:
        if name in self._names:
            return True
        try:
            address = ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not self._local


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return host.lower() == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _name(host: str) -> str:
    """`Host` without its port, and without the brackets of an IPv6 address."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host
