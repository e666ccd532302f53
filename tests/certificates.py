"""Certificates for encrypted connections, made for one test run."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme


class Certificates:
    """A certificate authority's, the server's and a client's, in PEM files."""

    def __init__(self, directory: Path) -> None:
        authority = trustme.CA()
        self.root, self.cert, self.key = (str(directory / name) for name in ("root.pem", "cert.pem", "key.pem"))
        self.client = str(directory / "client.pem")
        authority.cert_pem.write_to_path(self.root)
        server = authority.issue_cert("127.0.0.1")
        server.cert_chain_pems[0].write_to_path(self.cert)
        server.private_key_pem.write_to_path(self.key)
        authority.issue_cert("client@example.org").private_key_and_cert_chain_pem.write_to_path(self.client)

    def context(self, client: bool = False) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.root)
        if client:
            context.load_cert_chain(self.client)
        return context
