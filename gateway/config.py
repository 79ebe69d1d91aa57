"""sluice.toml: its shape, its strict reading, and the one rule for environment overrides.

Read once, at start; everything after gets values. An unknown key, a wrong type or a value out of
range is refused with the path of the field. `SLUICE__SERVER__HTTP=…` overrides `[server] http`:
the path in capitals, joined by double underscores; the value is read as TOML, and as plain text
where it is no TOML.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from redis.connection import parse_url

from engines import devices
from gateway import prediction_log_config
from gateway.config_fields import ConfigError, Name, NonNegative, Positive, Section
from gateway.prediction_log_config import PredictionLogConfig
from router import document as route_document
from router.faults import RouteError
from router.routes import Route

ENV_PREFIX = "SLUICE__"
BUILT_IN_PROVIDERS = frozenset({"cpu", "cuda", "tensorrt"})
_EMPTY_KEY_SHA256 = sha256().hexdigest()
_FIELD = re.compile(r"Object (?P<what>contains unknown|missing required) field `(?P<name>.*)`")


class TlsConfig(Section, frozen=True):
    """TLS on the predict listeners. Paths are relative to the configuration file."""

    certificate: str
    """PEM file of the certificate, with its chain."""
    key: str
    """PEM file of the certificate's key, without a passphrase."""
    client_ca: str = ""
    """PEM file of the authorities whose client certificates are demanded; empty: none are."""


class LimitsConfig(Section, frozen=True):
    """What one client, and all of them together, may take of the predict listeners."""

    connections: Positive = 16_384
    """Open connections per predict listener; over it new ones are closed at once."""
    streams_per_connection: Positive = 1_024
    """Concurrent calls on one HTTP/2 connection."""
    header_bytes: Annotated[int, Meta(ge=4_096)] = 32 << 10
    """Largest header list of a request, decoded."""
    connection_bytes: Annotated[int, Meta(ge=1_048_576)] = 256 << 20
    """Bytes held for one connection: incomplete requests, and answers that it does not read."""
    in_flight_bytes: Annotated[int, Meta(ge=1_048_576)] = 1 << 30
    """Bytes of large input tensors (64 KiB and more) in all requests under way; over it a request
    is refused as by a full queue."""
    handshake_timeout_s: Annotated[float, Meta(gt=0)] = 10.0
    """Longest wait for TLS and the first request's preface or head."""
    idle_timeout_s: Annotated[float, Meta(ge=0)] = 900.0
    """A gRPC connection without calls is closed after this; 0: never."""
    keepalive_s: Annotated[float, Meta(ge=0)] = 120.0
    """A gRPC connection that is silent for this long is sent a ping; 0: never."""
    keepalive_timeout_s: Annotated[float, Meta(gt=0)] = 20.0
    """Longest wait for the answer to that ping."""
    slow_peer_timeout_s: Annotated[float, Meta(gt=0)] = 30.0
    """Longest time without progress while a request arrives or an answer is being read."""


class ServerConfig(Section, frozen=True):
    """Addresses and limits of the listeners."""

    http: str = "127.0.0.1:8000"
    """Open Inference Protocol over HTTP."""
    grpc: str = "127.0.0.1:8001"
    """Open Inference Protocol over gRPC."""
    metrics: str = "127.0.0.1:8002"
    """Prometheus metrics."""
    admin: str = "127.0.0.1:8003"
    """Admin API."""
    max_body_bytes: Positive = 64 << 20
    """Largest HTTP body and gRPC message, after decompression."""
    overload_codes: Literal["standard", "triton"] = "standard"
    """What a full queue answers: 429/RESOURCE_EXHAUSTED, or Triton's 503/UNAVAILABLE."""
    drain_timeout_s: NonNegative = 30
    """How long accepted requests may take to finish after SIGTERM."""
    grpc_compression: Literal["none", "gzip", "deflate"] = "none"
    """Compression of gRPC answers; compressed requests are always accepted."""
    grpc_transport: Literal["sluice", "grpcio"] = "sluice"
    """sluice: our own, the cheap one; grpcio: the reference, which gives the same answers."""
    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    """1: one process; more: that many front processes, which feed one engine process."""
    tls: TlsConfig | None = None
    """Absent: the predict listeners speak plain text."""
    limits: LimitsConfig = LimitsConfig()
    replica: Annotated[
        str, Meta(pattern=r"^(?!(?:streams|schema|erased)\Z)[A-Za-z0-9_.\-]*\Z", max_length=128)
    ] = ""
    """Name of this process in stream keys and reports, unlike that of every other one on the same
    Redis; empty: host name and HTTP port."""


class ModelsConfig(Section, frozen=True):
    """The model repository."""

    repository: str = "models"
    """Folder in Triton's layout, relative to the configuration file."""
    control: Literal["none", "explicit"] = "none"
    """explicit: clients of the predict ports may load and unload models, as Triton's mode does."""
    default_max_batch_size: Positive = 64
    """Rows; for models whose configuration names none and whose first axis varies."""
    max_queue_rows: Positive = 4096
    """Bound of each version's queue, in rows."""
    intra_op_threads: NonNegative = 0
    """Threads per instance; 0: the usable cores shared by a model's instances."""
    poll_s: Annotated[float, Meta(ge=0)] = 0.0
    """How often the folder is looked through for changed models; 0: never."""
    device: str = "cpu"
    """Of models whose configuration names none: cpu, cuda:N (cuda means cuda:0), or auto: cuda:0
    where it can be had, else the CPU. Where cuda is asked for and is not there, the model is not
    served; it never runs on the CPU instead."""
    cache: str = ".sluice/engines"
    """Folder, relative to the configuration file, of what is made of model files: optimised graphs
    and plans; empty: nothing is kept."""
    gpu_reserve_bytes: NonNegative = 0
    """Free GPU memory that a load must leave, by estimate, else the model is refused; 0: no model
    is."""
    libraries: dict[Name, str] = {}
    """Libraries of execution providers that onnxruntime does not carry, by the name that a model
    gives as its accelerator; paths are relative to the configuration file."""


class RedisConfig(Section, frozen=True):
    """The Redis or Valkey server that keeps the routes and takes the prediction log."""

    url: str
    """redis://, rediss:// or unix://; a password belongs into the environment override."""


class ControlConfig(Section, frozen=True):
    """How routes are kept, changed and shared between gateways."""

    state: str = ".sluice"
    """Folder, relative to the configuration file: the routes where there is no Redis, the last
    known good ones where there is."""
    poll_ms: Annotated[int, Meta(ge=50)] = 1_000
    """How often Redis is asked for changed routes, give or take a fifth."""
    pubsub: bool = True
    """Let Redis say when a route has changed, so that nobody waits for the next poll."""
    timeout_s: Annotated[float, Meta(gt=0)] = 2.0
    """Longest wait for Redis to answer."""
    auth: Literal["none", "token"] = "none"
    """token: the admin API takes only principals with the role viewer (reads) or operator."""


class PrincipalConfig(Section, frozen=True):
    """Somebody who may authenticate with `authorization: Bearer KEY`."""

    key_sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    """SHA-256 of the key, in lower-case hexadecimal: the key itself is never in the file."""
    tenant: str = ""
    """What rules about tenants see."""
    roles: list[Literal["tester", "viewer", "operator"]] = []
    """tester: may choose a variant by a header, where a rule allows it; viewer: may read the
    admin API; operator: may also change what it shows."""


class Config(Section, frozen=True):
    """The whole file."""

    server: ServerConfig = ServerConfig()
    models: ModelsConfig = ModelsConfig()
    redis: RedisConfig | None = None
    """Absent: serve without a prediction log, and keep routes in a folder."""
    prediction_log: PredictionLogConfig = PredictionLogConfig()
    control: ControlConfig = ControlConfig()
    principals: dict[Name, PrincipalConfig] = {}
    routes: dict[Name, dict[str, Any]] = {}  # Any: router.document reads it
    """Route documents by name: the first revision of routes that are not stored yet."""


def load(path: Path, environ: Mapping[str, str]) -> Config:
    """Read a configuration file and apply the overrides of the environment.

    Raises:
        ConfigError: the file is missing, no TOML, or does not have the shape above.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    except OSError as exc:
        raise ConfigError("$", f"cannot read {path}: {exc.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError("$", f"{path} is no TOML: {exc}") from None
    override(document, environ)
    return parse(document)


def parse(document: Mapping[str, Any]) -> Config:  # Any: a TOML document before its check
    """Check a decoded document.

    Raises:
        ConfigError: with the path of the field at fault.
    """
    try:
        config = msgspec.convert(_plain(document), Config)
    except msgspec.ValidationError as exc:
        raise _as_config_error(exc, document) from None
    for field in ("http", "grpc", "metrics", "admin"):
        address(getattr(config.server, field), path=f"$.server.{field}")
    if config.redis is not None:
        _check_redis_url(config.redis.url)
    _check_models(config.models)
    _check_principals(config.principals)
    prediction_log_config.check(config.prediction_log)
    routes(config)
    return config


def _check_models(models: ModelsConfig) -> None:
    try:
        devices.parse(models.device)
    except ValueError as exc:
        raise ConfigError("$.models.device", str(exc)) from None
    for name in sorted(BUILT_IN_PROVIDERS & models.libraries.keys()):
        raise ConfigError(f"$.models.libraries.{name}", "this accelerator needs no library")


def _check_principals(principals: Mapping[str, PrincipalConfig]) -> None:
    """Refuse keys that would not say who calls: of two principals, or of everybody."""
    owners = {_EMPTY_KEY_SHA256: ""}
    for name, principal in principals.items():
        owner = owners.setdefault(principal.key_sha256, name)
        if owner != name:
            sentence = f"it is the key of {owner!r} as well" if owner else "the key is empty"
            raise ConfigError(f"$.principals.{name}.key_sha256", sentence)


def _check_redis_url(url: str) -> None:
    try:
        parse_url(url)  # type: ignore[no-untyped-call]  # redis ships it without types
    except ValueError as exc:
        raise ConfigError("$.redis.url", str(exc)) from None


def _as_config_error(exc: msgspec.ValidationError, document: Mapping[str, Any]) -> ConfigError:
    """Return the error with the whole path of the field at fault.

    msgspec writes ``[...]`` for the keys of a map, says ``key`` of one that is refused itself, and
    names only the table where a field is unknown or missing.
    """
    sentence, _, place = str(exc).partition(" - at ")
    is_key = place.startswith("`key` in ")
    path = place.removeprefix("`key` in ").strip("`").removeprefix("$")
    *maps, rest = f"{path}[...]".split("[...]") if is_key else path.split("[...]")
    keys: list[str] = []
    for part in maps:
        keys += part.removeprefix(".").split(".")
        at_fault = (key for key in _at(document, keys) if _fails_alone(document, keys, key))
        key = next(at_fault)
        document = _only(document, keys, key)
        keys.append(key)
    if field := _FIELD.fullmatch(sentence):
        rest += f".{field['name']}"
        sentence = "unknown key" if field["what"] == "contains unknown" else "this key is required"
    return ConfigError("$" + "".join(f".{key}" for key in keys) + rest, sentence)


def _at(document: Mapping[str, Any], keys: Sequence[str]) -> Mapping[str, Any]:
    for key in keys:
        document = document[key]
    return document


def _only(document: Mapping[str, Any], keys: Sequence[str], key: str) -> dict[str, Any]:
    """Return the document with the table at `keys` reduced to one of its keys."""
    if not keys:
        return {key: document[key]}
    return {**document, keys[0]: _only(document[keys[0]], keys[1:], key)}


def _fails_alone(document: Mapping[str, Any], keys: Sequence[str], key: str) -> bool:
    try:
        msgspec.convert(_plain(_only(document, keys, key)), Config)
    except msgspec.ValidationError:
        return True
    return False


def _plain(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document with numbers as TOML means them; routes keep their exact decimals."""
    return {k: v if k == "routes" else _floats(v) for k, v in document.items()}


def _floats(value: Any) -> Any:  # Any: TOML
    if isinstance(value, Mapping):
        return {k: _floats(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_floats(item) for item in value]
    return float(value) if isinstance(value, Decimal) else value


def override(document: dict[str, Any], environ: Mapping[str, str]) -> None:
    """Write the environment's overrides into a decoded document, in place.

    Raises:
        ConfigError: a path that runs through a value.
    """
    for variable in sorted(environ):
        if not variable.startswith(ENV_PREFIX):
            continue
        *parents, leaf = variable.removeprefix(ENV_PREFIX).split("__")
        table: Any = document
        for part in parents:
            table = table.setdefault(_key(table, part), {})
            if not isinstance(table, dict):
                raise ConfigError(variable, f"{part.lower()!r} is a value, not a table")
        key = _key(table, leaf)
        text = environ[variable]
        table[key] = text if _is_plain_text(table.get(key), text) else _value(text)


def _key(table: Mapping[str, Any], part: str) -> str:
    """Return the key meant by a part in capitals: an existing one, dashes as underscores."""
    wanted = part.lower()
    for key in table:
        if key.lower().replace("-", "_") == wanted:
            return key
    return wanted


def _is_plain_text(current: Any, text: str) -> bool:  # Any: TOML
    """Whether an override of text is meant as it stands: ``2`` for a version is no number."""
    return isinstance(current, str) and not text.startswith(('"', "'"))


def _value(text: str) -> Any:  # Any: TOML
    try:
        return tomllib.loads(f"value = {text}", parse_float=Decimal)["value"]
    except tomllib.TOMLDecodeError:
        return text


def address(text: str, *, path: str) -> tuple[str, int]:
    """Return host and port of ``host:port`` or ``[ipv6]:port``.

    Raises:
        ConfigError: not of that form.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    is_port = port.isdecimal() and len(port) <= 5 and int(port) <= 65_535
    if not colon or not host or not is_port:
        raise ConfigError(path, f"{text!r} is not of the form host:port")
    return host, int(port)


def routes(config: Config) -> list[Route]:
    """Return the configured routes; their revision is 0, as no store has numbered them.

    Raises:
        ConfigError: a route that cannot be; names its first fault.
    """
    made = []
    for name, document in config.routes.items():
        try:
            made.append(route_document.read(document, name=name))
        except RouteError as exc:
            fault = exc.faults[0]
            dotted = f".{fault.dotted}" if fault.dotted else ""
            raise ConfigError(f"$.routes.{name}{dotted}", fault.sentence) from None
    return made


def check_targets(config: Config, base: Path) -> Path:
    """Check what the file promises about the disk; return the repository's folder.

    Raises:
        ConfigError: the repository, a library, or a version that a route names, does not exist.
    """
    root = base / config.models.repository
    if not root.is_dir():
        raise ConfigError("$.models.repository", f"{root} is not a folder")
    for name, library in config.models.libraries.items():
        if not (base / library).is_file():
            raise ConfigError(f"$.models.libraries.{name}", f"{base / library} is not a file")
    for route in routes(config):
        for path, model, version in route.targets():
            at = f"$.routes.{route.name}.{'.'.join(map(str, path))}"
            if not (root / model).is_dir():
                raise ConfigError(f"{at}.model", f"model {model!r} is not in {root}")
            if not (root / model / version).is_dir():
                raise ConfigError(f"{at}.version", f"model {model!r} has no version {version!r}")
    return root
