"""Where a model runs, by its config.pbtxt and the settings: the device of each of its instances.

Knows instance_group, and what else asks for a GPU: an accelerator, a backend that has no CPU.
Whether the device is there is the engine's to say. A GPU that is asked for in any of these ways is
never traded for the CPU; one that neither the model nor the settings ask for is never taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from engines import devices
from gateway.model_config.accelerators import ACCELERATORS_AT
from gateway.model_config.backends import BACKENDS
from gateway.model_config.fields import FieldError
from gateway.pb import model_config_pb2 as pb

CPU: Final = "cpu"
AUTO: Final = "auto"
MAX_INSTANCES: Final = 1024
_CUDA: Final = "cuda"
_KINDS: Final = pb.ModelInstanceGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The devices of a version's instances; all CPUs, all GPUs, or all left to choose (auto)."""

    devices: tuple[str, ...]
    """Of each instance in turn: cpu, cuda:N or auto."""
    asked_by: Mapping[str, str]
    """Device -> the first field that asks for it; empty: [models] device of the settings."""

    @property
    def is_cpu(self) -> bool:
        """Whether no instance may run anywhere but on the CPU."""
        return self.devices[0] == CPU


class _Wish(NamedTuple):
    """The devices of one group, for each of its instances, and the field that says so."""

    devices: tuple[str, ...]
    field: str


def place(config: pb.ModelConfig, backend: str, default: str) -> Placement:
    """Return where the instances run; without groups, one instance where nothing says more.

    A group has `count` instances on each GPU that it names, and the GPUs take turns, as in Triton.

    Args:
        config: the model's.
        backend: one of BACKENDS.
        default: the device of the settings, checked.

    Raises:
        FieldError: a kind and GPUs that contradict each other or the backend, GPUs beside CPUs,
            too many instances.
    """
    automatic = _automatic(config, backend, default)
    groups = config.instance_group or [pb.ModelInstanceGroup()]
    found: list[str] = []
    asked_by: dict[str, str] = {}
    for number, group in enumerate(groups):
        at = f"instance_group[{number}]"
        wish = _group(at, group, automatic)
        if not BACKENDS[backend].has_cpu and CPU in wish.devices:
            raise FieldError(wish.field, f"the backend {backend!r} runs on a GPU only")
        found += wish.devices * _count(at, group, wish)
        for device in wish.devices:
            asked_by.setdefault(device, wish.field)
    _check(found)
    return Placement(devices=tuple(found), asked_by=asked_by)


def _automatic(config: pb.ModelConfig, backend: str, default: str) -> _Wish:
    """Return the device of a group that names none: the GPU that something else asks for, or the
    default. Which GPU, the default says too, if it names one."""
    kind, number = devices.parse(default)
    device = f"{_CUDA}:{number}" if kind == _CUDA else kind
    gpu = device if kind == _CUDA else f"{_CUDA}:0"
    if config.optimization.execution_accelerators.gpu_execution_accelerator:
        return _Wish((gpu,), f"{ACCELERATORS_AT}[0].name")
    if not BACKENDS[backend].has_cpu:
        return _Wish((gpu,), "" if gpu == device else "backend")
    return _Wish((device,), "")


def _group(at: str, group: pb.ModelInstanceGroup, automatic: _Wish) -> _Wish:
    if group.kind not in _KINDS.Kind.values():
        raise FieldError(f"{at}.kind", f"{group.kind} is no kind")
    gpus = list(group.gpus)
    if any(gpu < 0 for gpu in gpus):
        raise FieldError(f"{at}.gpus", f"{min(gpus)} is negative")
    if group.kind in (_KINDS.KIND_CPU, _KINDS.KIND_MODEL):
        if gpus:
            sentence = f"a group of {_KINDS.Kind.Name(group.kind)} cannot name GPUs"
            raise FieldError(f"{at}.gpus", sentence)
        return _Wish((CPU,), f"{at}.kind")
    if gpus:
        return _Wish(tuple(f"{_CUDA}:{gpu}" for gpu in gpus), f"{at}.gpus")
    if group.kind == _KINDS.KIND_GPU:
        return _Wish((f"{_CUDA}:0",), f"{at}.kind")
    return automatic


def _count(at: str, group: pb.ModelInstanceGroup, wish: _Wish) -> int:
    """Return the instances per device; a count that is absent or 0 means 1."""
    count = group.count or 1
    if count < 0:
        raise FieldError(f"{at}.count", f"{count} is negative")
    if count * len(wish.devices) > MAX_INSTANCES:
        sentence = f"{count * len(wish.devices)} instances are more than {MAX_INSTANCES}"
        raise FieldError(f"{at}.count", sentence)
    return count


def _check(found: list[str]) -> None:
    if len(found) > MAX_INSTANCES:
        raise FieldError("instance_group", f"{len(found)} instances are more than {MAX_INSTANCES}")
    different = list(dict.fromkeys(found))
    if len({device.partition(":")[0] for device in different}) > 1:
        sentence = f"instances on different kinds of device ({', '.join(different)})"
        raise FieldError("instance_group", f"{sentence} are not supported")
