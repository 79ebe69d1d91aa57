"""Execution providers that come as libraries of their own, by configuration.

onnxruntime keeps such libraries per process and under a name, so they are registered once, under a
lock, and stay until the process ends: a session may use one at any time. A library that failed to
load is tried again by the next model that asks for it. Loading one runs its code: only what the
server's configuration names is loaded, never what a model folder contains.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort

from engines.errors import DeviceUnavailable, ModelLoadError
from engines.ort.failures import first_line
from engines.ort.providers import Wanted

_GPU: Final = "GPU"
_DEVICE_ID: Final = "device_id"


@dataclass(frozen=True, slots=True)
class _Registered:
    path: Path
    provider_names: frozenset[str]
    """Providers that it brought; usually one, and not always named like the library."""


_lock = threading.Lock()
_registered: dict[str, _Registered] = {}


def add_to(
    options: ort.SessionOptions,
    wanted: Sequence[Wanted],
    libraries: Mapping[str, Path],
    device: tuple[str, int],
) -> list[str]:
    """Give a session the providers that are wanted, and return their names, best first.

    Args:
        options: of the session.
        wanted: at least one of them from a library.
        libraries: path by name.
        device: kind and number; of a provider that has several, this one is taken.

    Raises:
        ModelLoadError: a name is already that of another library.
        DeviceUnavailable: a library does not load, or has nothing on this machine to run on.
    """
    names = []
    for one in wanted:
        if one.is_library:
            brought = register(one.name, libraries[one.name])
        else:
            brought = frozenset((one.name,))
        chosen = _choose(one.name, _devices_of(brought), device)
        settings = {k: v for k, v in one.options.items() if one.is_library or k != _DEVICE_ID}
        try:
            options.add_provider_for_devices(chosen, settings)
        except Exception as exc:  # foreign: undocumented
            reason = first_line(exc)
            raise DeviceUnavailable(f"provider {one.name!r} cannot be used: {reason}") from exc
        names.append(str(chosen[0].ep_name))
    return names


def register(name: str, path: Path) -> frozenset[str]:
    """Load a library of providers once per process; return the names of its providers.

    Raises:
        ModelLoadError: the name is already that of another library.
        DeviceUnavailable: it does not load.
    """
    with _lock:
        known = _registered.get(name)
        if known is not None:
            if known.path != path:
                raise ModelLoadError(
                    f"provider library {name!r} is {known.path.name} in this process already and "
                    f"cannot become {path.name} before a restart"
                )
            return known.provider_names
        before = _provider_names()
        _register(name, path)
        names = (_provider_names() - before) | {name}
        _registered[name] = _Registered(path, names)
        return names


def _provider_names() -> frozenset[str]:
    return frozenset(str(device.ep_name) for device in ort.get_ep_devices())


def _register(name: str, path: Path) -> None:
    load = getattr(ort, "register_execution_provider_library", None)
    if load is None:
        raise DeviceUnavailable(
            f"provider library {name!r}: onnxruntime {ort.__version__} loads none; 1.23 does"
        )
    if not path.is_file():
        raise DeviceUnavailable(f"provider library {name!r}: {path.name} does not exist")
    try:
        load(name, str(path.absolute()))
    except Exception as exc:  # foreign: undocumented
        reason = first_line(exc)
        raise DeviceUnavailable(f"provider library {name!r} does not load: {reason}") from exc


def _devices_of(providers: frozenset[str]) -> list[Any]:  # Any: untyped OrtEpDevice
    return [device for device in ort.get_ep_devices() if device.ep_name in providers]


def _choose(name: str, found: Sequence[Any], device: tuple[str, int]) -> list[Any]:
    """Return the provider's device of that kind and number.

    Raises:
        DeviceUnavailable: it has none.
    """
    kind, index = device
    is_gpu = kind == "cuda"
    fitting = [one for one in found if (one.device.type.name == _GPU) == is_gpu]
    if is_gpu:
        numbered = {
            int(one.ep_options.get(_DEVICE_ID, place)): one for place, one in enumerate(fitting)
        }
        fitting = [numbered[index]] if index in numbered else []
    if not fitting:
        where = f"cuda:{index}" if is_gpu else "the CPU"
        raise DeviceUnavailable(f"provider {name!r} has nothing to run on at {where}")
    return fitting[:1]
