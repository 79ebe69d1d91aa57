"""Devices, against a driver library that is compiled to answer; no GPU is needed or used."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from engines import devices
from engines.devices import Cuda, Gpu
from engines.errors import DeviceUnavailable
from tests.support.driver_stubs import cuda_driver

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("cpu", ("cpu", 0)),
        ("auto", ("auto", 0)),
        ("cuda", ("cuda", 0)),
        ("cuda:0", ("cuda", 0)),
        ("cuda:12", ("cuda", 12)),
    ],
)
def test_a_device_is_a_kind_and_a_number(text: str, parsed: tuple[str, int]) -> None:
    assert devices.parse(text) == parsed


@pytest.mark.parametrize(
    "text", ["", "gpu", "CUDA:0", "cuda:", "cuda:-1", "cuda:01", "cuda:1 ", "cpu:0", "cuda:99999"]
)
def test_what_is_no_device_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no device: cpu, auto, cuda or cuda:N"):
        devices.parse(text)
    assert devices.why_not(text) == f"{text!r} is no device: cpu, auto, cuda or cuda:N"


def test_without_the_library_there_is_no_driver() -> None:
    library = "libcuda-that-is-not-here.so.1"
    expected = f"there is no NVIDIA driver: {library} is not found"
    assert devices._ask(library, None) == Cuda(None, (), expected)


def test_a_library_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "libcuda.so.1"
    broken.write_bytes(b"not a library")
    found = devices._ask(str(broken), None)
    assert found.driver_version is None
    assert found.why.startswith("the NVIDIA driver cannot be loaded: ")


def test_a_library_that_is_no_driver_names_what_it_lacks(tmp_path: Path) -> None:
    found = devices._ask(str(cuda_driver(tmp_path, "NO_MEMORY_CALL")), None)
    assert found.gpus == ()
    assert "too old or incomplete" in found.why
    assert "cuDeviceTotalMem_v2" in found.why


def test_two_gpus_are_read_with_all_that_is_known_of_them(tmp_path: Path) -> None:
    found = devices._ask(str(cuda_driver(tmp_path, "UUID_V1")), None)
    first = "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"
    second = "GPU-10111213-1415-1617-1819-1a1b1c1d1e1f"
    assert found == Cuda(
        13000,
        (
            Gpu(0, "Stub GPU 0", (9, 0), (80 << 30) + 10, first),
            Gpu(1, "Stub GPU 1", (9, 1), (80 << 30) + 11, second),
        ),
        "",
    )


def test_the_second_form_of_the_uuid_is_preferred_and_names_a_slice(tmp_path: Path) -> None:
    defines = ("UUID_V1", "UUID_V2=0", "GPUS=1", 'NAME="NVIDIA A100 MIG 1g.10gb"')
    (gpu,) = devices._ask(str(cuda_driver(tmp_path, *defines)), None).gpus
    assert gpu.uuid == "MIG-80818283-8485-8687-8889-8a8b8c8d8e8f"


@pytest.mark.parametrize("defines", [(), ("UUID_V2=801",)])
def test_a_gpu_without_a_uuid_is_still_a_gpu(tmp_path: Path, defines: tuple[str, ...]) -> None:
    found = devices._ask(str(cuda_driver(tmp_path, "GPUS=1", *defines)), None)
    assert [gpu.uuid for gpu in found.gpus] == [""]
    assert found.why == ""


@pytest.mark.parametrize(
    ("code", "part"),
    [
        (34, "stub, not an NVIDIA driver"),
        (35, "older than its CUDA library"),
        (100, "the NVIDIA driver finds no GPU"),
        (304, "the operating system refused"),
        (802, "fabric manager"),
        (803, "differ in version: restart the machine"),
        (804, "compatibility libraries do not support this GPU"),
        (999, "kernel module may not be loaded"),
        (4242, "the NVIDIA driver failed"),
    ],
)
def test_every_code_of_the_driver_is_a_sentence(tmp_path: Path, code: int, part: str) -> None:
    found = devices._ask(str(cuda_driver(tmp_path, f"INIT={code}", "DRIVER=12040")), None)
    assert found.gpus == ()
    assert found.driver_version == 12040
    assert part in found.why
    assert found.why.endswith(f"(CUDA error {code})")


@pytest.mark.parametrize(
    ("visible", "why"),
    [
        (None, "the NVIDIA driver finds no GPU"),
        ("", "CUDA_VISIBLE_DEVICES is empty, which hides every GPU"),
        ("-1", "CUDA_VISIBLE_DEVICES is '-1', and the NVIDIA driver finds no GPU of that name"),
    ],
)
@pytest.mark.parametrize("defines", ["INIT=100", "GPUS=0"])
def test_gpus_that_are_hidden_are_told_from_gpus_that_are_not_there(
    tmp_path: Path, defines: str, visible: str | None, why: str
) -> None:
    found = devices._ask(str(cuda_driver(tmp_path, defines)), visible)
    assert found.gpus == ()
    assert found.why.removesuffix(" (CUDA error 100)") == why


def test_a_gpu_that_is_there_has_no_reason_and_one_that_is_not_has(tmp_path: Path) -> None:
    library = cuda_driver(tmp_path)
    said = run_with(
        library, "[devices.why_not(d) for d in ('cpu','auto','cuda','cuda:1','cuda:2')]"
    )
    assert said == "['', '', '', '', 'cuda:2: there are 2 GPUs']"


def test_one_gpu_is_counted_in_the_singular(tmp_path: Path) -> None:
    said = run_with(cuda_driver(tmp_path, "GPUS=1"), "devices.why_not('cuda:1')")
    assert said == "cuda:1: there is 1 GPU"


def test_an_absent_driver_is_the_reason_for_every_gpu_and_for_nothing_else(
    tmp_path: Path,
) -> None:
    library = cuda_driver(tmp_path, "INIT=803")
    said = run_with(library, "[devices.why_not(d) for d in ('cpu', 'auto', 'cuda:1')]")
    assert said.startswith("['', '', \"cuda:1: the NVIDIA driver's kernel module")


def test_the_key_of_a_gpu_has_its_name_capability_and_driver(tmp_path: Path) -> None:
    key = "{'gpu': 'Stub GPU %d', 'compute_capability': [9, %d], 'driver_version': 13000}"
    asked = "[devices.hardware_key(d) for d in ('auto', 'cuda:1')]"
    said = run_with(cuda_driver(tmp_path), asked)
    assert said == f"[{key % (0, 0)}, {key % (1, 1)}]"


def test_without_a_gpu_the_key_of_auto_is_that_of_the_cpu(tmp_path: Path) -> None:
    asked = "devices.hardware_key('auto') == devices.hardware_key('cpu') != {}"
    assert run_with(cuda_driver(tmp_path, "GPUS=0"), asked) == "True"


def test_there_is_no_key_of_a_gpu_that_is_not_there() -> None:
    with pytest.raises(DeviceUnavailable, match=r"^cuda:4000: "):
        devices.hardware_key("cuda:4000")


def test_the_key_of_the_cpu_changes_with_its_instruction_sets(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    text = "processor\t: 0\nmodel name\t: Made Up 9000\nflags\t\t: sse avx2\n\nprocessor\t: 1\n"
    path.write_text(text)
    first = devices._processor(path)
    assert first["cpu"] == "Made Up 9000"
    assert first["machine"] == platform.machine()
    path.write_text(text.replace("sse avx2", "avx2 sse"))
    assert devices._processor(path) == first
    path.write_text(text.replace("avx2", "avx512f"))
    assert devices._processor(path) != first


def test_the_key_of_an_arm_cpu_has_its_part_and_features(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    text = "processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"
    path.write_text(text)
    first = devices._processor(path)
    assert first["cpu"] == "0x41 0xd0c"
    path.write_text(text.replace("asimd", "asimd sve"))
    assert devices._processor(path)["cpu_flags"] != first["cpu_flags"]


def test_a_machine_that_does_not_describe_its_cpu_has_a_key_all_the_same(tmp_path: Path) -> None:
    assert devices._processor(tmp_path / "none")["machine"] == platform.machine()


def test_the_driver_is_asked_once() -> None:
    assert devices.cuda() is devices.cuda()


def run_with(library: Path, expression: str) -> str:
    """Evaluate in a process whose loader finds this driver; return what it prints."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library.parent)}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    program = f"from engines import devices; print({expression})"
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
