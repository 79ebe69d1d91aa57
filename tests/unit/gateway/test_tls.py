"""Server contexts from real files: what they demand, and how their errors name the field."""

from __future__ import annotations

import contextlib
import shutil
import ssl
from pathlib import Path

import pytest

from gateway.config import TlsConfig
from gateway.config_fields import ConfigError
from gateway.tls import server_context
from tests.support.certificates import Certificates, encrypt_key, issue


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Issue some certificates."""
    return issue(tmp_path_factory.mktemp("certificates"))


def shake(
    server: ssl.SSLContext, client: ssl.SSLContext, name: str = "localhost"
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Do a handshake in memory; return both ends."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server, server_hostname=name),
    )
    for _ in range(4):
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    for end in ends:
        assert end.version() is not None
    return ends


def test_a_client_that_trusts_the_authority_gets_through(certificates: Certificates) -> None:
    context = server_context(certificates.settings(), certificates.folder, ["http/1.1"])
    client = certificates.client_context()
    client.set_alpn_protocols(["h2", "http/1.1"])
    server_end, client_end = shake(context, client)
    assert client_end.version() == "TLSv1.3"
    assert server_end.selected_alpn_protocol() == "http/1.1"


def test_a_client_without_alpn_gets_through(certificates: Certificates) -> None:
    context = server_context(certificates.settings(), certificates.folder, ["h2"])
    server_end, _ = shake(context, certificates.client_context())
    assert server_end.selected_alpn_protocol() is None


def test_tls_1_2_has_forward_secrecy_and_nothing_older_is_spoken(
    certificates: Certificates,
) -> None:
    context = server_context(certificates.settings(), certificates.folder, ["http/1.1"])
    client = certificates.client_context()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    _, client_end = shake(context, client)
    cipher = client_end.cipher()
    assert cipher is not None
    assert cipher[0].startswith("ECDHE-")
    client.set_ciphers("AES128-SHA256:DHE-RSA-AES128-SHA256")
    with pytest.raises(ssl.SSLError, match=r"(?i)handshake failure|no shared cipher"):
        shake(context, client)
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_certificate_is_demanded_of_clients_where_an_authority_is_named(
    certificates: Certificates,
) -> None:
    settings = certificates.settings(asks_clients=True)
    context = server_context(settings, certificates.folder, ["http/1.1"])
    assert context.verify_mode is ssl.CERT_REQUIRED
    server_end, _ = shake(context, certificates.client_context(shows_itself=True))
    subject = dict(pair for group in server_end.getpeercert()["subject"] for pair in group)  # type: ignore[index, misc]
    assert subject == {"commonName": "client"}
    with pytest.raises(ssl.SSLError, match=r"(?i)peer did not return a certificate"):
        shake(context, certificates.client_context())


def test_paths_may_be_absolute(certificates: Certificates, tmp_path: Path) -> None:
    settings = TlsConfig(
        certificate=str(certificates.server.certificate), key=str(certificates.server.key)
    )
    assert server_context(settings, tmp_path, ["h2"])


@pytest.mark.parametrize(
    ("change", "field", "sentence"),
    [
        ({"certificate": "none.pem"}, "certificate", "cannot read"),
        ({"key": "none.key"}, "key", "cannot read"),
        ({"client_ca": "none.pem"}, "client_ca", "cannot read"),
        ({"certificate": "."}, "certificate", "cannot read"),
        ({"certificate": "junk"}, "certificate", "holds no certificate in PEM form"),
        ({"key": "junk"}, "key", "holds no private key in PEM form, or one with a passphrase"),
        (
            {"key": "locked.key"},
            "key",
            "holds no private key in PEM form, or one with a passphrase",
        ),
        ({"client_ca": "junk"}, "client_ca", "holds no certificate in PEM form"),
        ({"client_ca": "server.key"}, "client_ca", "holds no certificate in PEM form"),
        ({"key": "client.key"}, "key", "is not the key of the certificate in"),
        ({"certificate": "server.key"}, "certificate", "holds no certificate in PEM form"),
        ({"key": "server.pem"}, "key", "holds no private key in PEM form"),
    ],
)
def test_a_file_that_will_not_do_is_named_by_its_field(
    certificates: Certificates,
    change: dict[str, str],
    field: str,
    sentence: str,
    tmp_path: Path,
) -> None:
    for file in certificates.folder.iterdir():
        shutil.copy(file, tmp_path)
    (tmp_path / "junk").write_bytes(b"-----BEGIN CERTIFICATE-----\nnonsense\n")
    encrypt_key(certificates.server.key, tmp_path / "locked.key")
    fields = {"certificate": "server.pem", "key": "server.key"} | change
    with pytest.raises(ConfigError, match=sentence) as caught:
        server_context(TlsConfig(**fields), tmp_path, ["h2"])
    assert caught.value.path == f"$.server.tls.{field}"
