from __future__ import annotations

import stat
import tomllib
from pathlib import Path

import pytest

from gateway import config as configuration
from gateway.demo import settings
from gateway.demo.screen import DemoFailed
from router.policy import CompiledRoute

URL = "redis://127.0.0.1:6379/0"


def test_the_configuration_has_the_shape_that_users_rely_on(tmp_path: Path) -> None:
    document = tomllib.loads(settings.write(tmp_path, URL).read_text())
    assert document == {
        "server": {
            "http": "127.0.0.1:8000",
            "grpc": "127.0.0.1:8001",
            "metrics": "127.0.0.1:8002",
            "admin": "127.0.0.1:8003",
        },
        "models": {"repository": "models"},
        "redis": {"url": URL},
        "routes": {
            "digits": {
                "key": ["header:x-user-id"],
                "variants": {
                    "stable": {"model": "digits", "version": "1", "weight": 90},
                    "canary": {"model": "digits", "version": "2", "weight": 10},
                },
            }
        },
    }


@pytest.mark.parametrize(
    "url", [URL, 'redis://:a"b\\c@h/0', "unix:///tmp/größe 😀.sock?db=1", "redis://h/0#\t"]
)
def test_any_url_survives_the_file(tmp_path: Path, url: str) -> None:
    config = settings.load(settings.write(tmp_path, url), {})
    assert config.redis is not None
    assert config.redis.url == url


def test_only_the_owner_may_read_it_also_where_an_older_one_was_open(tmp_path: Path) -> None:
    (tmp_path / settings.CONFIG_NAME).write_text("old")
    path = settings.write(tmp_path, URL)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_overrides_of_the_environment_are_seen(tmp_path: Path) -> None:
    path = settings.write(tmp_path, URL)
    config = settings.load(path, {"SLUICE__SERVER__HTTP": "127.0.0.1:9000"})
    assert config.server.http == "127.0.0.1:9000"


def test_a_wrong_override_is_named_by_its_path(tmp_path: Path) -> None:
    path = settings.write(tmp_path, URL)
    with pytest.raises(DemoFailed, match=r"\$\.server\.http: 'nowhere' is not of the form"):
        settings.load(path, {"SLUICE__SERVER__HTTP": "nowhere"})


def test_turning_the_prediction_log_off_is_refused(tmp_path: Path) -> None:
    path = settings.write(tmp_path, URL)
    with pytest.raises(DemoFailed, match="turns the prediction log off"):
        settings.load(path, {"SLUICE__PREDICTION_LOG__ENABLED": "false"})


def test_each_variant_gets_a_user_whom_the_route_gives_to_it(tmp_path: Path) -> None:
    config = settings.load(settings.write(tmp_path, URL), {})
    (route,) = configuration.routes(config)
    compiled = CompiledRoute.compile(route)
    users = settings.users(compiled)
    assert set(users) == {"stable", "canary"}
    for variant, user in users.items():
        assert compiled.decide(user.encode(), lambda: 0.0).variant.name == variant


def test_a_variant_without_weight_gets_no_user(tmp_path: Path) -> None:
    everything_to_stable = {
        "SLUICE__ROUTES__DIGITS__VARIANTS__STABLE__WEIGHT": "100",
        "SLUICE__ROUTES__DIGITS__VARIANTS__CANARY__WEIGHT": "0",
    }
    config = settings.load(settings.write(tmp_path, URL), everything_to_stable)
    (route,) = configuration.routes(config)
    assert settings.users(CompiledRoute.compile(route)) == {"stable": "user-1"}
