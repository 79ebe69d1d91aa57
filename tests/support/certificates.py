"""Real certificates for tests, made by the openssl command: an authority, a server, a client."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

from gateway.config import TlsConfig

_EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A certificate and its key, as PEM files."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """What an authority has issued."""

    folder: Path
    authority: Path
    server: Pair
    client: Pair

    def settings(self, *, asks_clients: bool = False) -> TlsConfig:
        """Return the configuration of a server, with paths relative to the folder."""
        return TlsConfig(
            certificate=self.server.certificate.name,
            key=self.server.key.name,
            client_ca=self.authority.name if asks_clients else "",
        )

    def client_context(self, *, shows_itself: bool = False) -> ssl.SSLContext:
        """Return the context of a client that trusts the authority."""
        context = ssl.create_default_context(cafile=self.authority)
        if shows_itself:
            context.load_cert_chain(self.client.certificate, self.client.key)
        return context


def issue(folder: Path) -> Certificates:
    """Make an authority and what it issues."""
    authority = Pair(certificate=folder / "ca.pem", key=folder / "ca.key")
    _openssl(
        *("req", "-x509", *_EC, "-nodes", "-days", "2", "-subj", "/CN=Test authority"),
        *("-keyout", authority.key, "-out", authority.certificate),
    )
    server = _signed(folder, "server", authority, "subjectAltName=DNS:localhost,IP:127.0.0.1")
    client = _signed(folder, "client", authority, "extendedKeyUsage=clientAuth")
    return Certificates(
        folder=folder, authority=authority.certificate, server=server, client=client
    )


def _signed(folder: Path, name: str, authority: Pair, extension: str) -> Pair:
    pair = Pair(certificate=folder / f"{name}.pem", key=folder / f"{name}.key")
    _openssl(
        *("req", "-x509", *_EC, "-nodes", "-days", "2", "-subj", f"/CN={name}"),
        *("-CA", authority.certificate, "-CAkey", authority.key),
        *("-addext", extension, "-addext", "basicConstraints=critical,CA:FALSE"),
        *("-keyout", pair.key, "-out", pair.certificate),
    )
    return pair


def encrypt_key(key: Path, target: Path) -> None:
    """Write a key under a passphrase."""
    _openssl("pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", target)


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
