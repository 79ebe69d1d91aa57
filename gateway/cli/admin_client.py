"""Talks to the admin API: calls in, values or typed errors out.

The standard library's HTTP client, a connection per call, no proxy and no redirect. Nothing is ever
retried: after a write without an answer nobody knows whether it was made, and the error says so.
Knows no terminal and no exit code.
"""

from __future__ import annotations

import http.client
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from gateway.cli import route_documents as shapes
from gateway.cli.route_documents import Fault, Refusal, RouteDocument

CONNECT_TIMEOUT_S: Final = 3.0
READ_TIMEOUT_S: Final = 5.0
WRITE_TIMEOUT_S: Final = 60.0
"""A write loads and warms up the versions that it names before it answers."""

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)


class AdminError(Exception):
    """Family of what can go wrong; `body` is what the gateway answered, if it did."""

    def __init__(self, sentence: str, body: bytes = b"") -> None:
        super().__init__(sentence)
        self.body = body


class Unreachable(AdminError):
    """No answer: nobody listens, or nothing came back in time."""


class GatewayFailed(AdminError):
    """The gateway failed (5xx), or what answered is no admin API."""


class Refused(AdminError):
    """The request is invalid; `faults` has a pointer for each reason, where there are any."""

    def __init__(self, sentence: str, body: bytes, faults: Sequence[Fault]) -> None:
        super().__init__(sentence, body)
        self.faults = faults


class NotThere(AdminError):
    """No such route or revision."""


class Conflicting(AdminError):
    """The state of the route does not allow it."""


class RevisionMoved(Conflicting):
    """The route is at another revision; `current` is it, None if the route is gone."""

    def __init__(self, sentence: str, body: bytes, current: RouteDocument | None) -> None:
        super().__init__(sentence, body)
        self.current = current


class NotAllowed(AdminError):
    """The gateway does not know the caller, or the caller may not."""


class WrongAddress(Exception):
    """The address of the admin API cannot be one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where the admin API is."""

    host: str
    port: int
    is_https: bool = False
    prefix: str = ""
    """Path before /v1, without a slash at its end."""

    @classmethod
    def parse(cls, url: str) -> Address:
        """Return the address in http://host:port/prefix; the scheme may be left out.

        Raises:
            WrongAddress: with a sentence.
        """
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https"):
            raise WrongAddress(f"{url!r} is neither http:// nor https://")
        if parts.username is not None or parts.query or parts.fragment:
            raise WrongAddress("give scheme, host and port only; a key goes into SLUICE_TOKEN")
        try:
            port = parts.port
        except ValueError:
            raise WrongAddress(f"{url!r} has a port that is none") from None
        if not parts.hostname:
            raise WrongAddress(f"{url!r} names no host")
        is_https = parts.scheme == "https"
        default = http.client.HTTPS_PORT if is_https else http.client.HTTP_PORT
        return cls(
            host=parts.hostname,
            port=default if port is None else port,
            is_https=is_https,
            prefix=parts.path.rstrip("/"),
        )

    def __str__(self) -> str:
        """Return the address as people write it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.is_https else 'http'}://{host}:{self.port}{self.prefix}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply(Generic[_T_co]):
    """An answer that is no error."""

    value: _T_co
    status: int
    text: str
    """The body as it came."""
    etag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """A change to a route."""

    method: str
    reason: str
    verb: str = ""
    """After the name and a colon: setWeights, abort, ..."""
    body: Mapping[str, object] | None = None
    """None: the write has no body, or only a reason."""
    if_match: str = ""
    """ETag of the revision that is changed; empty: no condition."""
    must_not_exist: bool = False
    flags: Sequence[str] = ()
    """Query parameters that are true: dry_run, reseed, accept_carryover."""
    wait_s: float | None = None
    """Ask the gateway to answer only when all replicas have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """One exchange over HTTP."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, bytes] = field(default_factory=dict)
    body: bytes | None = None
    timeout_s: float


class AdminClient:
    """The admin API of one gateway; has no state between calls."""

    def __init__(
        self, address: Address, *, token: str = "", actor: str = "", timeout_s: float | None = None
    ) -> None:
        """Remember where and who.

        Args:
            address: of the admin listener.
            token: printable ASCII; sent as a bearer token unless empty.
            actor: who changes routes, where the gateway authenticates nobody.
            timeout_s: longest silence of the gateway; None: short for reads, long for writes.
        """
        self.address = address
        self._actor = actor
        self._timeout_s = timeout_s
        self._headers = {"accept": b"application/json"}
        if token:
            self._headers["authorization"] = b"Bearer " + token.encode()

    def routes(self) -> Reply[shapes.RouteList]:
        """Return every route."""
        return self._get("/v1/routes", shapes.RouteList)

    def route(self, name: str) -> Reply[RouteDocument]:
        """Return a route as it is now."""
        return self._get(_path(name), RouteDocument)

    def history(self, name: str, limit: int) -> Reply[shapes.History]:
        """Return the newest revisions of a route."""
        return self._get(_path(name, "revisions"), shapes.History, {"limit": str(limit)})

    def difference(self, name: str, first: int, second: int) -> Reply[shapes.Difference]:
        """Return what differs between two revisions."""
        return self._get(_path(name, f"revisions/{first}..{second}"), shapes.Difference)

    def explain(self, name: str, question: Mapping[str, str]) -> Reply[shapes.Explanation]:
        """Return who would serve a request."""
        return self._get(_path(name, "explain"), shapes.Explanation, question)

    def convergence(self, name: str, timeout_s: float | None = None) -> Reply[shapes.Convergence]:
        """Return which replicas have the newest revision."""
        path = _path(name, "convergence")
        return self._get(path, shapes.Convergence, timeout_s=timeout_s)

    def statistics(self, name: str) -> Reply[shapes.Statistics]:
        """Return what the variants of a route did."""
        return self._get(_path(name, "stats"), shapes.Statistics)

    def audit(self, wanted: Mapping[str, str]) -> Reply[shapes.Audit]:
        """Return who changed what; `wanted` may have route, actor and since."""
        return self._get("/v1/audit", shapes.Audit, wanted)

    def write(self, name: str, write: Write) -> Reply[shapes.Written]:
        """Change a route.

        Raises:
            AdminError: of every kind; RevisionMoved if its condition does not hold.
        """
        headers = {"x-reason": write.reason.encode()}
        if self._actor:
            headers["x-actor"] = self._actor.encode()
        if write.if_match:
            headers["if-match"] = write.if_match.encode()
        if write.must_not_exist:
            headers["if-none-match"] = b"*"
        timeout_s = self._timeout_s or WRITE_TIMEOUT_S
        if write.wait_s is not None:
            headers["prefer"] = f"wait={round(write.wait_s)}".encode()
            timeout_s += write.wait_s
        body = None
        if write.body is not None:
            headers["content-type"] = b"application/json"
            body = _ENCODER.encode(write.body)
        call = _Call(
            method=write.method,
            path=_path(name) + (f":{write.verb}" if write.verb else ""),
            query=dict.fromkeys(write.flags, "true"),
            headers=headers,
            body=body,
            timeout_s=timeout_s,
        )
        return self._reply(call, shapes.Written)

    def _get(
        self,
        path: str,
        shape: type[_T],
        query: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Reply[_T]:
        limit_s = timeout_s or self._timeout_s or READ_TIMEOUT_S
        return self._reply(
            _Call(method="GET", path=path, query=query or {}, timeout_s=limit_s), shape
        )

    def _reply(self, call: _Call, shape: type[_T]) -> Reply[_T]:
        response, body = self._exchange(call)
        if not 200 <= response.status < 300:
            raise self._error(response, body)
        try:
            value = msgspec.json.decode(body, type=shape)
        except msgspec.DecodeError as exc:
            raise GatewayFailed(
                f"{self.address} answered something that this command cannot read: {exc}; "
                "is it the admin listener?"
            ) from None
        return Reply(
            value=value,
            status=response.status,
            text=body.decode(errors="replace"),
            etag=response.headers.get("etag", ""),
        )

    def _exchange(self, call: _Call) -> tuple[http.client.HTTPResponse, bytes]:
        kind = http.client.HTTPSConnection if self.address.is_https else http.client.HTTPConnection
        connection = kind(self.address.host, self.address.port, timeout=CONNECT_TIMEOUT_S)
        target = self.address.prefix + call.path
        if call.query:
            target += "?" + urlencode(call.query, quote_via=quote)
        try:
            connection.connect()
        except (OSError, UnicodeError) as exc:  # UnicodeError: a host name that cannot be one
            raise Unreachable(f"cannot reach {self.address}: {_why(exc)}") from None
        try:
            connection.sock.settimeout(call.timeout_s)
            connection.request(call.method, target, call.body, {**self._headers, **call.headers})
            response = connection.getresponse()
            return response, response.read()
        except (OSError, http.client.HTTPException) as exc:
            sentence = f"{self.address} gave no answer: {_why(exc)}"
            if call.method != "GET":
                sentence += "; nobody knows whether the change was made, so look before you repeat"
            raise Unreachable(sentence) from None
        finally:
            connection.close()

    def _error(self, response: http.client.HTTPResponse, body: bytes) -> AdminError:
        status = response.status
        try:
            refusal = msgspec.json.decode(body, type=Refusal)
        except msgspec.DecodeError:
            sentence = f"{self.address} answered HTTP {status} without a reason"
            return GatewayFailed(f"{sentence}; is it the admin listener?")
        sentence = refusal.error or f"{self.address} answered HTTP {status}"
        match status:
            case 401 | 403:
                return NotAllowed(sentence, body)
            case 404:
                return NotThere(sentence, body)
            case 409 | 428:
                return Conflicting(sentence, body)
            case 412:
                return RevisionMoved(sentence, body, refusal.current)
        if 400 <= status < 500:
            return Refused(sentence, body, refusal.errors)
        if after_s := response.headers.get("retry-after"):
            sentence += f" (try again in {after_s} s)"
        return GatewayFailed(sentence, body)


_ENCODER: Final = msgspec.json.Encoder(decimal_format="number")


def _path(name: str, rest: str = "") -> str:
    return f"/v1/routes/{quote(name, safe='')}" + (f"/{rest}" if rest else "")


def _why(exc: Exception) -> str:
    if isinstance(exc, TimeoutError):
        return "it took too long"
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror
    return str(exc) or type(exc).__name__
