"""A client of the v2 protocol over HTTP, for the commands: of this server or of any other that speaks it."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any, Mapping, NamedTuple, Optional, Type
from urllib.parse import quote, urlsplit

import urllib3

_DEFAULT_PORT = 8000


class ClientError(Exception):
    """The server cannot be reached, or refused; the text is for the user. ``status`` is that of the answer, 0 when there was none."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class Answer(NamedTuple):
    """The body of an answer, and its header fields by name in lower case."""

    body: bytes
    headers: Mapping[str, str]

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            ClientError: it is none.
        """
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise ClientError(f"the server's answer is not JSON: {self.body[:80]!r}") from error


def base_url(text: str) -> str:
    """``host``, ``host:port`` or a whole URL, as a URL without a slash at its end.

    Raises:
        ClientError: it is none of these.
    """
    try:
        parts = urlsplit(text if "//" in text else f"//{text}", scheme="http")
        port = parts.port
    except ValueError as error:
        raise ClientError(f"'{text}' is not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ClientError(f"'{text}' is not a URL: give host:port, http://... or https://...")
    if port is None and parts.scheme == "http":
        port = _DEFAULT_PORT
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path.rstrip('/')}"


class HttpClient:
    """Requests to one server, one after the other.

    Args:
        url: as ``base_url`` takes it.
        seconds: how long to wait for an answer.
        headers: for every request.

    Raises:
        ClientError: the URL is none.
    """

    def __init__(self, url: str, seconds: float, headers: Optional[Mapping[str, str]] = None) -> None:
        self.url = base_url(url)
        self._headers = headers or {}
        self.seconds = seconds
        self._pool = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(connect=min(seconds, 10), read=seconds))

    def get(self, path: str) -> Answer:
        """Raises ClientError."""
        return self.request("GET", path)

    def request(self, method: str, path: str, body: bytes = b"", headers: Optional[Mapping[str, str]] = None) -> Answer:
        """The answer, of status 200.

        Raises:
            ClientError: any other status, with the text of the error; or there is no answer.
        """
        try:
            response = self._pool.request(method, self.url + quote(path), body=body or None, headers={**self._headers, **(headers or {})})
        except urllib3.exceptions.NewConnectionError as error:
            raise ClientError(f"no server answers at {self.url}: {_cause(error)}") from error
        except urllib3.exceptions.TimeoutError as error:
            raise ClientError(f"no answer from {self.url} within {self.seconds:g} seconds") from error
        except urllib3.exceptions.HTTPError as error:
            raise ClientError(f"the connection to {self.url} failed: {_cause(error)}") from error
        if response.status != 200:
            raise ClientError(_text(response.data, response.status), response.status)
        return Answer(response.data, {name.lower(): value for name, value in response.headers.items()})

    def __enter__(self) -> HttpClient:
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        self._pool.clear()


def _cause(error: BaseException) -> str:
    """The words of the system at the end of a chain of exceptions."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    strerror = getattr(error, "strerror", None)
    return strerror if isinstance(strerror, str) else str(error)


def _text(body: bytes, status: int) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return f"the server answers with status {status}"
