"""HTTP as bytes on a socket: requests exactly as a test wants them, and answers exactly as they came."""

from __future__ import annotations

import json
import socket
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Union

Headers = Dict[str, str]

TIMEOUT = 20.0


class Answer(NamedTuple):
    """``headers`` have their names in lower case."""

    status: int
    headers: Headers
    body: bytes

    def json(self) -> Any:
        """The body, or that part of it that is JSON."""
        length = self.headers.get("inference-header-content-length")
        return json.loads(self.body if length is None else self.body[: int(length)])

    @property
    def error(self) -> str:
        assert self.headers["content-type"] == "application/json"
        ((key, text),) = json.loads(self.body).items()
        assert key == "error"
        return text  # type: ignore[no-any-return]

    @property
    def binary(self) -> bytes:
        """What follows the JSON."""
        return self.body[int(self.headers["inference-header-content-length"]) :]


class Wire:
    """One connection."""

    def __init__(self, port: int, receive_buffer: Optional[int] = None) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect(("127.0.0.1", port))
        self._rest = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, *pieces: bytes) -> None:
        """Sends pieces one by one, each as a segment of its own as far as the system allows."""
        for piece in pieces:
            self.socket.sendall(piece)

    def ask(self, request: bytes) -> Answer:
        self.send(request)
        return self.answer()

    def answer(self, head: bool = False) -> Answer:
        """The next answer; ``head`` when it is to a HEAD request, and so has no body whatever its length says.

        Raises:
            ConnectionError: the server closed the connection instead.
        """
        start = self._until(b"\r\n\r\n")
        first, *lines = start.decode("latin-1").split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1"
        headers = {}
        for line in filter(None, lines):
            name, value = line.split(": ", 1)
            assert name.lower() not in headers, f"{name} came twice"
            headers[name.lower()] = value
        if head or int(status) == 100:
            return Answer(int(status), headers, b"")
        return Answer(int(status), headers, self._exactly(int(headers["content-length"])))

    def closed(self) -> bool:
        """Waits for the end of the connection; False when something else came."""
        try:
            return not self._rest and self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _more(self) -> None:
        data = self.socket.recv(1 << 20)
        if not data:
            raise ConnectionError(f"the server closed the connection after {self._rest!r}")
        self._rest += data

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._rest:
            self._more()
        head, self._rest = self._rest.split(mark, 1)
        return head

    def _exactly(self, nbytes: int) -> bytes:
        pieces = [self._rest]
        missing = nbytes - len(self._rest)
        while missing > 0:
            data = self.socket.recv(min(missing, 1 << 20))
            if not data:
                raise ConnectionError(f"the server closed the connection with {missing} bytes to go")
            pieces.append(data)
            missing -= len(data)
        body = b"".join(pieces)
        self._rest = body[nbytes:]
        return body[:nbytes]


def request(method: str, path: str, body: bytes = b"", headers: Optional[Headers] = None, version: str = "1.1") -> bytes:
    """A request; a header given as "" is left out."""
    lines = {"host": "localhost", **({"content-length": str(len(body))} if body or method == "POST" else {}), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    return f"{method} {path} HTTP/{version}\r\n{head}\r\n".encode("latin-1") + body


def infer(model: str, document: Any, binary: Optional[bytes] = None, headers: Optional[Headers] = None, version: str = "1.1") -> bytes:
    """An inference. ``document`` is JSON as an object or as bytes; with ``binary``, that follows and the length header says so."""
    text = document if isinstance(document, bytes) else json.dumps(document, ensure_ascii=False).encode()
    own = {} if binary is None else {"inference-header-content-length": str(len(text))}
    return request("POST", f"/v2/models/{model}/infer", text + (binary or b""), {**own, **(headers or {})}, version)


def chunked(pieces: Sequence[bytes]) -> Iterator[bytes]:
    """A body in the chunked transfer coding; empty pieces are left out, for they would end it."""
    for piece in filter(None, pieces):
        yield b"%x\r\n" % len(piece) + piece + b"\r\n"
    yield b"0\r\n\r\n"


def tensor(name: str, datatype: str, shape: Sequence[int], data: Any = None, **parameters: Union[int, str]) -> Dict[str, Any]:
    """An input of a request."""
    described: Dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(shape)}
    if data is not None:
        described["data"] = data
    if parameters:
        described["parameters"] = parameters
    return described


def cut(data: bytes, places: Sequence[int]) -> List[bytes]:
    """``data`` in pieces, cut at these places."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in zip(edges, edges[1:])]
