"""What can go wrong on the way to an endpoint, told with its cause and, where there is one, with its mend.

What no other try mends (an untrusted certificate, a proxy that wants a password, an address that is none)
stops the endpoint at once; what may pass is an outage.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from genworker.core.visible import visible
from genworker.errors import ProviderError, ProviderUnavailableError, RequestRejectedError, Scope

UNRESOLVED_TRIES = 3
UNRESOLVED_S = 2.0
"""A name that does not resolve in so many tries over so long is taken for a wrong one."""
_PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")


class WayFaults:
    """Tells the errors of one endpoint's connections as ours.

    Args:
        use_env_proxy: whether the proxy of the environment is used.
    """

    def __init__(self, *, use_env_proxy: bool) -> None:
        self._use_env_proxy = use_env_proxy
        self._unresolved = 0
        self._unresolved_since_s = 0.0

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Raise aiohttp's errors, and the system's, as ours."""
        try:
            yield
        except TimeoutError:
            raise _outage("no connection within the time for it", billed=False) from None
        except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as error:
            raise self._meaning(error) from None
        self._unresolved = 0

    def _meaning(self, error: Exception) -> ProviderError:
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            why = getattr(error.certificate_error, "verify_message", "") or error.certificate_error
            return _permanent(
                f"the certificate of {error.host}:{error.port} is not trusted: {why}",
                "set ca_file in the endpoint's section, or the variable SSL_CERT_FILE, to the file of the "
                "authority that signed it",
            )
        if isinstance(error, aiohttp.ClientHttpProxyError):
            return self._proxy_refusal(error)
        if isinstance(error, aiohttp.InvalidURL):
            return self._bad_address()
        if isinstance(error, aiohttp.ClientConnectorSSLError):
            return self._no_tls(error)
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            return self._not_resolved(error)
        if isinstance(error, aiohttp.ClientProxyConnectionError):
            return _outage(
                f"cannot connect to the proxy {error.host}:{error.port}: {_reason(error.os_error)}",
                billed=False,
            )
        if isinstance(error, aiohttp.ClientConnectorError):
            what = f"cannot connect to {error.host}:{error.port}: {_reason(error.os_error)}"
            return _outage(what + self._unused_proxy(), billed=False)
        if isinstance(error, aiohttp.ServerDisconnectedError):
            return _outage("the endpoint closed the connection without an answer", billed=True)
        if isinstance(error, aiohttp.ClientResponseError | HttpProcessingError):
            return _outage(f"the answer cannot be read: {error.message}", billed=True)
        if isinstance(error, ValueError) and not isinstance(error, aiohttp.ClientError):
            return unsendable(error)
        what = _reason(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        return _outage(what, billed=True)

    def _proxy_refusal(self, error: aiohttp.ClientHttpProxyError) -> ProviderError:
        if error.status == 407:
            return _permanent(
                "the proxy asks for a name and a password (HTTP 407), or refuses those that it got",
                "write them into HTTPS_PROXY: http://NAME:PASSWORD@HOST:PORT",
            )
        if 400 <= error.status < 500:
            return _permanent(
                f"the proxy refuses to connect to the endpoint: HTTP {error.status} {error.message}",
                "allow the endpoint there, or take use_env_proxy out",
            )
        return _outage(f"the proxy answers HTTP {error.status} {error.message}", billed=False)

    def _bad_address(self) -> ProviderError:
        # Never shown: a proxy's address may hold a password.
        if self._use_env_proxy:
            return _permanent(
                "the address of the proxy in the environment is none",
                "write HTTPS_PROXY as http://HOST:PORT, or take use_env_proxy out",
            )
        return _permanent("the endpoint's address is none", "correct base_url")

    def _no_tls(self, error: aiohttp.ClientConnectorSSLError) -> ProviderError:
        reason = str(getattr(error.os_error, "reason", "") or error.os_error)
        if "WRONG_VERSION_NUMBER" in reason or "HTTP_REQUEST" in reason:
            return _permanent(
                f"{error.host}:{error.port} does not speak https",
                "write http:// in base_url, and allow_http = true if the network is yours",
            )
        return _outage(f"no secure connection to {error.host}:{error.port}: {reason}", billed=False)

    def _not_resolved(self, error: aiohttp.ClientConnectorDNSError) -> ProviderError:
        now_s = time.monotonic()
        if not self._unresolved:
            self._unresolved_since_s = now_s
        self._unresolved += 1
        what = f"the name {error.host} does not resolve{self._unused_proxy()}"
        if self._unresolved < UNRESOLVED_TRIES or now_s - self._unresolved_since_s < UNRESOLVED_S:
            return _outage(what, billed=False)
        return _permanent(what, "correct base_url, or mend the network")

    def _unused_proxy(self) -> str:
        if self._use_env_proxy:
            return ""
        name = next((name for name in _PROXY_VARIABLES if os.environ.get(name)), None)
        return "" if name is None else f" ({name} is set and not used: use_env_proxy = true would use it)"


def unsendable(error: ValueError) -> ProviderError:
    """A request that cannot be written, such as one with a header that holds what none may hold."""
    return _permanent(f"the request cannot be sent: {error}", "correct the endpoint's section")


def _reason(error: object) -> str:
    """An error of the system in its own words."""
    if isinstance(error, socket.gaierror):
        return str(error.strerror)
    if isinstance(error, OSError):
        # uvloop and asyncio put addresses and more into the text; the system's words say it.
        return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
    return str(error)


def _outage(what: str, *, billed: bool) -> ProviderUnavailableError:
    text = visible(what, limit=500, one_line=True)
    return ProviderUnavailableError(f"no response: {text}", may_be_billed=billed)


def _permanent(what: str, fix: str) -> RequestRejectedError:
    text = visible(what, limit=500, one_line=True)
    return RequestRejectedError(f"no way to the endpoint: {text}; {fix}", scope=Scope.ENDPOINT, is_sure=True)
