"""[models] of sluice.toml: devices, and libraries of execution providers."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from gateway import config as configuration
from gateway.config import Config
from gateway.config_fields import ConfigError


def parsed(text: str) -> Config:
    """Check a text."""
    return configuration.parse(tomllib.loads(text))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("device = 'gpu'", "$.models.device: 'gpu' is no device: cpu, auto, cuda or cuda:N"),
        (
            "device = 'cuda:-1'",
            "$.models.device: 'cuda:-1' is no device: cpu, auto, cuda or cuda:N",
        ),
        ("device = ''", "$.models.device: '' is no device: cpu, auto, cuda or cuda:N"),
        ("libraries.cuda = 'x'", "$.models.libraries.cuda: this accelerator needs no library"),
        ("libraries.tensorrt = 'x'", "$.models.libraries.tensorrt: this accelerator needs no libr"),
        ("gpu_reserve_bytes = -1", "$.models.gpu_reserve_bytes: Expected `int` >= 0"),
    ],
)
def test_what_cannot_be_is_refused_under_the_path_of_its_field(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(f"[models]\n{text}")
    assert str(caught.value).startswith(sentence)
    assert caught.value.path == sentence.partition(": ")[0]


@pytest.mark.parametrize("device", ["cpu", "auto", "cuda", "cuda:0", "cuda:15"])
def test_a_device_is_a_cpu_a_gpu_or_a_choice(device: str) -> None:
    assert parsed(f"[models]\ndevice = '{device}'").models.device == device


def test_a_library_of_a_provider_is_a_file_relative_to_the_configuration(tmp_path: Path) -> None:
    config = parsed("[models.libraries]\nrtx = 'libs/rtx.so'")
    (tmp_path / "models").mkdir()
    with pytest.raises(ConfigError, match=r"^\$\.models\.libraries\.rtx: .*rtx\.so is not a file$"):
        configuration.check_targets(config, tmp_path)
    (tmp_path / "libs").mkdir()
    (tmp_path / "libs" / "rtx.so").touch()
    assert configuration.check_targets(config, tmp_path) == tmp_path / "models"
