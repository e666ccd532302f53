"""Where the commands find a server."""

from __future__ import annotations

import pytest
from stublet.parent.cli.http_client import ClientError, HttpClient, base_url


@pytest.mark.parametrize(
    "text, url",
    [
        ("localhost", "http://localhost:8000"),
        ("localhost:9000", "http://localhost:9000"),
        ("http://localhost", "http://localhost:8000"),
        ("http://localhost:80/", "http://localhost:80"),
        ("http://gateway:80/prefix/", "http://gateway:80/prefix"),
        ("https://gateway", "https://gateway"),
        ("https://gateway:8443", "https://gateway:8443"),
        ("127.0.0.1:1", "http://127.0.0.1:1"),
        ("[::1]:9000", "http://[::1]:9000"),
        ("http://[::1]", "http://[::1]:8000"),
    ],
)
def test_urls(text: str, url: str) -> None:
    assert base_url(text) == url


@pytest.mark.parametrize("text", ["", "http://", "ftp://x", "http://[", "x:port", "x:99999", ":8000"])
def test_what_is_no_url(text: str) -> None:
    with pytest.raises(ClientError, match=f"^'{text.replace('[', '.')}' is not a URL: "):
        base_url(text)


def test_nobody_there() -> None:
    with HttpClient("127.0.0.1:1", 5) as client, pytest.raises(ClientError) as caught:
        client.get("/v2")
    assert str(caught.value) == "no server answers at http://127.0.0.1:1: Connection refused"
