"""TLS for the predict listeners: files from the configuration -> one server context.

Read once, at start: a certificate that is renewed on disk is served after a restart. Knows neither
protocol; each listener says by ALPN what it speaks.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from gateway.config import TlsConfig
from gateway.config_fields import ConfigError

_PATH: Final = "$.server.tls"
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: forward secrecy and authenticated encryption. TLS 1.3 has nothing else."""


class Pem(NamedTuple):
    """The files of TLS as they stand, for a transport that makes its own context."""

    key: bytes
    certificate: bytes
    client_ca: bytes | None


def read_pem(settings: TlsConfig, base: Path) -> Pem:
    """Return the files' content; `server_context` has checked them."""
    authorities = (base / settings.client_ca).read_bytes() if settings.client_ca else None
    key, certificate = (base / name for name in (settings.key, settings.certificate))
    return Pem(key.read_bytes(), certificate.read_bytes(), authorities)


def server_context(settings: TlsConfig, base: Path, alpn: Sequence[str]) -> ssl.SSLContext:
    """Return the context of a listener.

    Args:
        settings: what to present, and whom to ask for a certificate.
        base: the folder that relative paths start from.
        alpn: the protocols that the listener speaks, the preferred one first.

    Raises:
        ConfigError: a file is missing or not what it should be; with the path of its field.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(list(alpn))
    _load_certificate(
        context,
        certificate=_existing(base, settings.certificate, "certificate"),
        key=_existing(base, settings.key, "key"),
    )
    if settings.client_ca:
        _demand_certificates(context, _existing(base, settings.client_ca, "client_ca"))
    return context


def _existing(base: Path, name: str, field: str) -> Path:
    path = base / name
    try:
        path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"{_PATH}.{field}", f"cannot read {path}: {exc.strerror}") from None
    return path


def _load_certificate(context: ssl.SSLContext, *, certificate: Path, key: Path) -> None:
    try:
        # Without a password OpenSSL would ask the terminal for one.
        context.load_cert_chain(certificate, key, password=b"")
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            sentence = f"{key} is not the key of the certificate in {certificate}"
            raise ConfigError(f"{_PATH}.key", sentence) from None
        if not _holds_certificates(certificate):
            sentence = f"{certificate} holds no certificate in PEM form"
            raise ConfigError(f"{_PATH}.certificate", sentence) from None
        sentence = f"{key} holds no private key in PEM form, or one with a passphrase"
        raise ConfigError(f"{_PATH}.key", sentence) from None


def _demand_certificates(context: ssl.SSLContext, authorities: Path) -> None:
    if not _holds_certificates(authorities):
        sentence = f"{authorities} holds no certificate in PEM form"
        raise ConfigError(f"{_PATH}.client_ca", sentence)
    context.load_verify_locations(authorities)
    context.verify_mode = ssl.CERT_REQUIRED


def _holds_certificates(path: Path) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        return False
    return True
