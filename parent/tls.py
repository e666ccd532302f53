"""Encryption of a port by the standard library's ``ssl``."""

from __future__ import annotations

import ssl
from typing import Optional

from .options import OptionError, TlsOptions


def server_context(options: TlsOptions, prefix: str) -> Optional[ssl.SSLContext]:
    """What a server encrypts its connections with; None if it shall not.

    Args:
        prefix: how the options begin, for errors.

    Raises:
        OptionError: a file is missing or cannot be used.
    """
    if not (options.use or options.mutual):
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(
            _given(options.server_cert, f"{prefix}-server-cert"), _given(options.server_key, f"{prefix}-server-key"), _no_password
        )
    except OSError as error:
        raise OptionError(f"{prefix}-server-cert, {prefix}-server-key: {error}") from error
    if options.mutual:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(_given(options.root_cert, f"{prefix}-root-cert"))
        except OSError as error:
            raise OptionError(f"{prefix}-root-cert: {error}") from error
    return context


def _given(path: str, option: str) -> str:
    if not path:
        raise OptionError(f"{option} must name a file, for encrypted connections")
    return path


def _no_password() -> str:
    """Without it, ssl asks the terminal for the password of a key that has one."""
    raise OSError("the key is protected by a password")
