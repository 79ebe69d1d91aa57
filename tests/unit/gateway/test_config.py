"""sluice.toml: what is taken, what is refused and under which path, and the environment's rule."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pytest

from gateway import config as configuration
from gateway.config import Config
from gateway.config_fields import ConfigError

EVERYTHING: Final = """
[server]
http = "127.0.0.1:8000"
grpc = "[::1]:8001"
max_body_bytes = 1048576
overload_codes = "triton"
drain_timeout_s = 0
[models]
repository = "models"
control = "explicit"
poll_s = 2
[redis]
url = "redis://127.0.0.1:6379/0"
[prediction_log]
linger_ms = 5
timeout_s = 1
[control]
state = "/var/lib/sluice"
poll_ms = 50
pubsub = false
auth = "token"
[principals.ann]
key_sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
tenant = "acme"
roles = ["tester", "operator"]
[routes.digits]
key = ["header:X-User-Id", "parameter:user"]
salt = "spring"
[routes.digits.variants]
stable = { model = "digits", version = "1", weight = 99.9999 }
canary = { model = "digits", version = "2", weight = 0.0001 }
"""


def arm(model: str = "'m'", version: str = "'1'", weight: str = "100", name: str = "a") -> str:
    """Return a line that makes a variant; values are TOML."""
    return f"variants.{name} = {{ model = {model}, version = {version}, weight = {weight} }}"


def route(**fields: str) -> str:
    """Return the route `d` with one variant, whose fields are those of `arm`."""
    return f"[routes.d]\n{arm(**fields)}"


ARM: Final = arm()


def parsed(text: str) -> Config:
    """Check a text."""
    return configuration.parse(tomllib.loads(text, parse_float=Decimal))


def test_a_file_that_sets_everything_is_read() -> None:
    config = parsed(EVERYTHING)
    assert config.server.max_body_bytes == 1 << 20
    assert config.prediction_log.timeout_s == 1.0
    assert config.redis is not None
    assert (config.models.poll_s, config.control.poll_ms, config.control.auth) == (2, 50, "token")
    assert config.principals["ann"].roles == ["tester", "operator"]
    (route,) = configuration.routes(config)
    assert (route.name, route.revision, route.salt) == ("digits", 0, "spring")
    assert [(s.kind, s.name) for s in route.key] == [
        ("header", "x-user-id"),
        ("parameter", "user"),
    ]
    assert {v.name: v.slots for v in route.variants} == {"stable": 999_999, "canary": 1}


def test_an_empty_file_is_the_defaults() -> None:
    config = parsed("")
    assert config == Config()
    assert config.redis is None
    assert configuration.routes(config) == []
    addresses = {config.server.http, config.server.grpc, config.server.metrics, config.server.admin}
    assert addresses == {f"127.0.0.1:{port}" for port in (8000, 8001, 8002, 8003)}


def test_a_routes_salt_is_its_name_unless_it_is_given() -> None:
    (route,) = configuration.routes(parsed(f"[routes.digits]\n{ARM}"))
    assert route.salt == "digits"


REFUSED: Final[Mapping[str, tuple[str, str]]] = {
    "unknown section": ("[sever]", "$.sever: unknown key"),
    "unknown key": ("[server]\nhtpp = 'x'", "$.server.htpp: unknown key"),
    "unknown key of a route": (f"[routes.d]\ncolour = 1\n{ARM}", "$.routes.d.colour: unknown key"),
    "missing key": ("[redis]", "$.redis.url: this key is required"),
    "missing model": (
        "[routes.d]\nvariants.a = { version = '1', weight = 100 }",
        "$.routes.d.variants.a.model: this key is required",
    ),
    "wrong type": ("[server]\nhttp = 8000", "$.server.http: Expected `str`, got `int`"),
    "section that is a value": ("models = 1", "$.models: Expected `object`, got `int`"),
    "variant that is a value": (
        "[routes.d]\nvariants.a = 1",
        "$.routes.d.variants.a: expected a table, got a value of type int",
    ),
    "fraction": (
        "[server]\nmax_body_bytes = 1.5",
        "$.server.max_body_bytes: Expected `int`, got `float`",
    ),
    "too small": ("[server]\nmax_body_bytes = 0", "$.server.max_body_bytes: Expected `int` >= 1"),
    "negative": ("[server]\ndrain_timeout_s = -1", "$.server.drain_timeout_s: Expected `int` >= 0"),
    "too large": (
        "[prediction_log]\nbatch_records = 513",
        "$.prediction_log.batch_records: Expected `int` <= 512",
    ),
    "not above zero": (
        "[prediction_log]\ntimeout_s = 0",
        "$.prediction_log.timeout_s: Expected `float` > 0.0",
    ),
    "no choice": ("[models]\ncontrol = 'poll'", "$.models.control: Invalid enum value 'poll'"),
    "no address": ("[server]\nhttp = '8000'", "$.server.http: '8000' is not of the form host:port"),
    "no host": ("[server]\ngrpc = ':80'", "$.server.grpc: ':80' is not of the form host:port"),
    "no port": ("[server]\nadmin = 'h:'", "$.server.admin: 'h:' is not of the form host:port"),
    "port too high": (
        "[server]\nmetrics = 'h:65536'",
        "$.server.metrics: 'h:65536' is not of the form host:port",
    ),
    "port of many digits": (f"[server]\nhttp = 'h:{'9' * 5_000}'", "$.server.http: 'h:999"),
    "no Redis URL": ("[redis]\nurl = 'http://x'", "$.redis.url: Redis URL must specify one of"),
    "a Redis port that is none": (
        "[redis]\nurl = 'redis://h:x/0'",
        "$.redis.url: Port could not be cast",
    ),
    "no choice of authentication": (
        "[control]\nauth = 'basic'",
        "$.control.auth: Invalid enum value 'basic'",
    ),
    "polls too often": ("[control]\npoll_ms = 49", "$.control.poll_ms: Expected `int` >= 50"),
    "a wait for nothing": (
        "[control]\ntimeout_s = 0.0",
        "$.control.timeout_s: Expected `float` > 0.0",
    ),
    "principal without a key": (
        "[principals.ann]\ntenant = 'acme'",
        "$.principals.ann.key_sha256: this key is required",
    ),
    "digest in capitals": (
        f"[principals.ann]\nkey_sha256 = '{'AB' * 32}'",
        "$.principals.ann.key_sha256: Expected `str` matching",
    ),
    "digest with a line's end": (
        f'[principals.ann]\nkey_sha256 = "{"ab" * 32}\\n"',
        "$.principals.ann.key_sha256: Expected `str` matching",
    ),
    "a key instead of its digest": (
        "[principals.ann]\nkey_sha256 = 'secret'",
        "$.principals.ann.key_sha256: Expected `str` matching",
    ),
    "no role": (
        f"[principals.ann]\nkey_sha256 = '{'ab' * 32}'\nroles = ['admin']",
        "$.principals.ann.roles[0]: Invalid enum value 'admin'",
    ),
    "principal's name with a blank": (
        f"[principals.'an n']\nkey_sha256 = '{'ab' * 32}'",
        "$.principals.an n: Expected `str` matching",
    ),
    "one key of two principals": (
        "\n".join(f"[principals.{n}]\nkey_sha256 = '{'ab' * 32}'" for n in ("ann", "bob")),
        "$.principals.bob.key_sha256: it is the key of 'ann' as well",
    ),
    "the empty key": (
        f"[principals.ann]\nkey_sha256 = '{sha256().hexdigest()}'",
        "$.principals.ann.key_sha256: the key is empty",
    ),
    "no variants": (
        "[routes.d]\nvariants = {}",
        "$.routes.d.variants: a route needs at least one variant",
    ),
    "weights over 100": (
        f"[routes.d]\n{ARM}\n{arm(name='b')}",
        "$.routes.d.variants: weights sum to 200, not 100",
    ),
    "weights under 100": (
        route(weight="99.9999"),
        "$.routes.d.variants: weights sum to 99.9999, not 100",
    ),
    "weight of text": (
        route(weight="'100'"),
        "$.routes.d.variants.a.weight: expected a number, got a value of type str",
    ),
    "weight that is a flag": (
        route(weight="true"),
        "$.routes.d.variants.a.weight: expected a number, got a value of type bool",
    ),
    "weight beyond 100": (
        route(weight="100.5"),
        "$.routes.d.variants.a.weight: weight 100.5 is not between 0 and 100",
    ),
    "weight that is no number": (
        route(weight="nan"),
        "$.routes.d.variants.a.weight: weight NaN is not between 0 and 100",
    ),
    "weight too fine": (
        route(weight="99.99999"),
        "$.routes.d.variants.a.weight: weight 99.99999 is finer than 0.0001",
    ),
    "version that is a number": (
        f"[routes.ok]\n{ARM}\n" + route(version="1"),
        "$.routes.d.variants.a.version: expected a text, got a value of type int",
    ),
    "version zero": (
        route(version="'0'"),
        "$.routes.d.variants.a.version: '0' is no version: a positive whole number as text",
    ),
    "version in words": (
        route(version="'v1'"),
        "$.routes.d.variants.a.version: 'v1' is no version: a positive whole number as text",
    ),
    "model with a slash": (
        route(model="'m/x'"),
        "$.routes.d.variants.a.model: 'm/x' is no name: letters, digits",
    ),
    "route's name with a blank": (
        f"[routes.'d d']\n{ARM}",
        "$.routes.d d: Expected `str` matching",
    ),
    "route's name with a line's end": (
        f'[routes."d\\n"]\n{ARM}',
        "$.routes.d\n: Expected `str` matching",
    ),
    "variant's name with a blank": (
        "[routes.d]\nvariants.'a b' = { model = 'm', version = '1', weight = 100 }",
        "$.routes.d.variants.a b: 'a b' is no name: letters, digits",
    ),
    "names with dots": (
        "[routes.'a.b'.variants.'c.d']\nmodel = 1\nversion = '1'\nweight = 100",
        "$.routes.a.b.variants.c.d.model: expected a text, got a value of type int",
    ),
    "key that is no list": (
        f"[routes.d]\nkey = 'header:x'\n{ARM}",
        "$.routes.d.key: expected a list, got a value of type str",
    ),
    "unknown key source": (
        f"[routes.d]\nkey = ['header:x', 'cookie:y']\n{ARM}",
        "$.routes.d.key[1]: 'cookie:y' is not of the form 'header:NAME', 'parameter:NAME' or",
    ),
    "key source without a name": (
        f"[routes.d]\nkey = ['header:']\n{ARM}",
        "$.routes.d.key[0]: 'header:' is not of the form 'header:NAME', 'parameter:NAME' or",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_under_the_path_of_its_field(case: str) -> None:
    text, sentence = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    assert str(caught.value).startswith(sentence)
    assert caught.value.path == sentence.partition(": ")[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("localhost:65535", ("localhost", 65_535)),
        ("[::1]:80", ("::1", 80)),
        ("[::]:0", ("::", 0)),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, expected: tuple[str, int]) -> None:
    assert configuration.address(text, path="$") == expected


def overridden(text: str, **environ: str) -> dict[str, Any]:  # Any: TOML
    """Return a document after the overrides of an environment."""
    document = tomllib.loads(text, parse_float=Decimal)
    configuration.override(document, environ)
    return document


def test_the_environment_overrides_a_field_by_its_path() -> None:
    document = overridden(EVERYTHING, SLUICE__SERVER__HTTP="0.0.0.0:80", PATH="/bin")
    assert document["server"]["http"] == "0.0.0.0:80"


def test_an_override_is_read_as_toml_and_as_text_where_it_is_none() -> None:
    document = overridden(
        "",
        SLUICE__SERVER__MAX_BODY_BYTES="64",
        SLUICE__PREDICTION_LOG__ENABLED="false",
        SLUICE__PREDICTION_LOG__TIMEOUT_S="0.5",
        SLUICE__ROUTES__D__KEY='["header:x"]',
        SLUICE__REDIS__URL="redis://user:pass@h:1/0",
    )
    assert document["server"]["max_body_bytes"] == 64
    assert document["prediction_log"] == {"enabled": False, "timeout_s": Decimal("0.5")}
    assert document["routes"]["d"]["key"] == ["header:x"]
    assert document["redis"]["url"] == "redis://user:pass@h:1/0"


def test_an_override_of_text_stays_text_though_it_looks_like_a_number() -> None:
    name = "SLUICE__ROUTES__DIGITS__VARIANTS__STABLE__VERSION"
    document = overridden(EVERYTHING, **{name: "3"})
    assert document["routes"]["digits"]["variants"]["stable"]["version"] == "3"
    quoted = overridden(EVERYTHING, **{name: '"4"'})
    assert quoted["routes"]["digits"]["variants"]["stable"]["version"] == "4"


def test_an_override_finds_names_with_dashes_and_capitals() -> None:
    text = f"[routes.Big-Digits]\n{ARM}"
    document = overridden(text, SLUICE__ROUTES__BIG_DIGITS__SALT="x")
    assert document["routes"]["Big-Digits"]["salt"] == "x"
    assert list(document["routes"]) == ["Big-Digits"]


def test_an_override_of_a_weight_is_exact() -> None:
    document = overridden(
        EVERYTHING,
        SLUICE__ROUTES__DIGITS__VARIANTS__STABLE__WEIGHT="70",
        SLUICE__ROUTES__DIGITS__VARIANTS__CANARY__WEIGHT="30.0",
    )
    (route,) = configuration.routes(configuration.parse(document))
    assert route.sizes == {"stable": 700_000, "canary": 300_000}


def test_an_override_through_a_value_is_refused_by_its_variable() -> None:
    with pytest.raises(ConfigError) as caught:
        overridden("server = 1", SLUICE__SERVER__HTTP="x")
    assert str(caught.value) == "SLUICE__SERVER__HTTP: 'server' is a value, not a table"


def test_an_override_of_an_unknown_field_is_refused_as_in_the_file() -> None:
    with pytest.raises(ConfigError, match=r"^\$\.server\.htpp: unknown key$"):
        configuration.parse(overridden("", SLUICE__SERVER__HTPP="x"))


def test_a_file_is_read_and_overridden(tmp_path: Path) -> None:
    path = tmp_path / "sluice.toml"
    path.write_bytes(f"# größer\n{EVERYTHING}".encode())
    config = configuration.load(path, {"SLUICE__MODELS__REPOSITORY": "other"})
    assert config.models.repository == "other"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, r"^\$: cannot read .*sluice\.toml: No such file or directory$"),
        (b"[server", r"^\$: .*sluice\.toml is no TOML: .*\(at end of document\)$"),
        (b"a = '\xff'", r"^\$: .*sluice\.toml is no TOML: .*utf-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(
    tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    path = tmp_path / "sluice.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=sentence):
        configuration.load(path, {})


@pytest.mark.parametrize(
    ("folders", "sentence"),
    [
        ([], r"^\$\.models\.repository: .*models is not a folder$"),
        (
            ["models"],
            r"^\$\.routes\.digits\.variants\.canary\.model: model 'digits' is not in .*models$",
        ),
        (
            ["models/digits/1"],
            r"^\$\.routes\.digits\.variants\.canary\.version: model 'digits' has no version '2'$",
        ),
    ],
)
def test_what_is_not_on_disk_is_refused(tmp_path: Path, folders: list[str], sentence: str) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(ConfigError, match=sentence):
        configuration.check_targets(parsed(EVERYTHING), tmp_path)


def test_the_repository_is_relative_to_the_file_unless_it_is_absolute(tmp_path: Path) -> None:
    root = tmp_path / "models"
    for version in ("1", "2"):
        (root / "digits" / version).mkdir(parents=True)
    assert configuration.check_targets(parsed(EVERYTHING), tmp_path) == root
    absolute = parsed(EVERYTHING.replace('"models"', f'"{root}"'))
    assert configuration.check_targets(absolute, Path("/elsewhere")) == root
