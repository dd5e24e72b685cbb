"""Who may ask the live view.

Only this machine: the server listens on the loopback address, every address begins with a token that is drawn
at the start, ``Host`` has to be this machine, and what writes (a rating) has to come from a page of this
server. Pages carry a policy that allows the view's own script and style sheet and nothing else.
"""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from starlette.responses import (
    PlainTextResponse,
)
from starlette.types import ASGIApp, Receive, Scope, Send

_LOCAL = ("127.0.0.1", "localhost", "[::1]")

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS = {
    "Content-Security-Policy": POLICY,
    # Not "no-referrer": a form would then be sent with the origin "null". Other hosts are told nothing.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def is_local_host(host: str) -> bool:
    """Whether a ``Host`` header names this machine, with any port: a tunnel may have another one."""
    name, _, port = host.rpartition(":") if not host.endswith("]") and ":" in host else (host, "", "")
    return name.lower() in _LOCAL and (not port or (port.isascii() and port.isdecimal()))


class Guard:
    """Refuses what does not come from this machine's own pages: see the module's words."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it with a refusal."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, send)
        else:
            status, words = refusal
            await PlainTextResponse(words + "\n", status, headers=PAGE_HEADERS)(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = [(name.lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) != 1 or not is_local_host(hosts[0]):
            return 421, "this view answers on this machine only"
        token = scope["path"].split("/", 2)[1]
        if not hmac.compare_digest(token.encode(), self.token.encode()):
            return 403, "the address lacks its token: take the one that `genworker view` has printed"
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, "this view is asked by GET and POST"
        origins = [value for name, value in headers if name == b"origin"]
        if scope["method"] == "POST" and not origins:
            return 403, "a rating comes from a page of this view"
        for origin in origins:
            if urlsplit(origin).netloc != hosts[0] or urlsplit(origin).scheme not in ("http", "https"):
                return 403, "this request comes from another page"
        return None
