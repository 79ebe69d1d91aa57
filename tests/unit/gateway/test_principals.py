"""Who calls: keys are looked up by their digest, byte for byte."""

from __future__ import annotations

from hashlib import sha256

import pytest

from gateway.config import PrincipalConfig
from gateway.principals import Principal, Principals

ANN = Principal(name="ann", tenant="acme", roles=frozenset({"tester", "viewer"}))
BOB = Principal(name="bob", tenant="", roles=frozenset())


def digest(key: bytes) -> str:
    return sha256(key).hexdigest()


def known(key: bytes = b"secret") -> Principals:
    """Return Ann by her key, and Bob by `b-key`."""
    return Principals(
        {
            "ann": PrincipalConfig(
                key_sha256=digest(key), tenant="acme", roles=["tester", "viewer"]
            ),
            "bob": PrincipalConfig(key_sha256=digest(b"b-key")),
        }
    )


def bearer(value: str | None, principals: Principals) -> Principal | None:
    """Identify the sender of an authorization header."""
    return principals.identify(lambda name: value if name == "authorization" else None)


@pytest.mark.parametrize(
    ("value", "who"),
    [
        ("Bearer secret", ANN),
        ("bearer secret", ANN),
        ("BEARER  secret ", ANN),
        ("Bearer \tsecret\t", ANN),
        ("Bearer b-key", BOB),
        ("Bearer Secret", None),
        ("Bearer secret2", None),
        ("Bearer sec ret", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("Basic secret", None),
        ("secret", None),
        ("Bearersecret", None),
        ("", None),
        (None, None),
    ],
)
def test_a_caller_is_the_owner_of_its_key_or_nobody(value: str | None, who: Principal) -> None:
    assert bearer(value, known()) == who


def test_the_digest_of_a_key_is_no_key() -> None:
    assert bearer(f"Bearer {digest(b'secret')}", known()) is None


@pytest.mark.parametrize("key", ["größer", "voilà", "å…", "日本"])
def test_a_key_may_be_any_text_in_utf_8(key: str) -> None:
    """The last byte of some is white space in latin-1, which is how headers are read."""
    received = f"Bearer {key}".encode().decode("latin-1")
    assert bearer(received, known(key.encode())) == ANN


def test_where_nobody_is_configured_no_header_is_looked_at() -> None:
    def unasked(name: str) -> str:
        raise AssertionError(name)

    assert Principals({}).identify(unasked) is None
