"""Makes onnxruntime sessions: their options, the cache of optimised models, where nodes ended up.

Knows one session at a time. Threads are explicit and do not spin, because the gateway shares its
cores with its own event loop: two spinning sessions on two cores reach half the throughput of two
that wait (batching note, 5.5). onnxruntime's own fallback (a session that fails is made again on
the CPU, with a line on standard output) is switched off everywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort

from engines.base import EngineConfig
from engines.errors import ModelLoadError
from engines.ort.failures import first_line
from engines.ort.providers import CPU, ENTRY_PREFIXES, Wanted

RECORD_PLACEMENT: Final = "session.record_ep_graph_assignment_info"
NO_CPU_NODES: Final = "session.disable_cpu_ep_fallback"
_ERRORS_ONLY: Final = 3


def entries_of(config: EngineConfig) -> dict[str, str]:
    """Return the session entries that a model's own configuration sets."""
    return {k: v for k, v in config.parameters.items() if k.startswith(ENTRY_PREFIXES)}


def session_options(
    config: EngineConfig, entries: Mapping[str, str] | None = None
) -> ort.SessionOptions:
    """Return the options of a session; the configuration's entries win over those given."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = config.intra_op_threads
    options.inter_op_num_threads = config.inter_op_threads
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _ERRORS_ONLY
    merged = {"session.intra_op.allow_spinning": "0", "session.inter_op.allow_spinning": "0"}
    merged.update(entries or {})
    merged.update(entries_of(config))
    for key, value in merged.items():
        options.add_session_config_entry(key, value)
    return options


def open_session(
    path: Path, options: ort.SessionOptions, wanted: Sequence[Wanted] = ()
) -> ort.InferenceSession:
    """Make a session on these providers, or on those that the options name.

    Raises:
        Exception: onnxruntime's own, of a class per cause, several undocumented.
    """
    providers = [(one.name, dict(one.options)) for one in wanted]
    return ort.InferenceSession(str(path), options, providers=providers or None, enable_fallback=0)


def open_cpu(path: Path, config: EngineConfig) -> ort.InferenceSession:
    """Make a session on the CPU alone.

    Raises:
        ModelLoadError: the file does not load.
    """
    try:
        return open_session(path, session_options(config), [Wanted(CPU, {})])
    except Exception as exc:  # foreign: see open_session
        raise does_not_load(path, exc) from exc


def does_not_load(path: Path, exc: Exception) -> ModelLoadError:
    """Return the error for a file that onnxruntime refuses."""
    return ModelLoadError(f"{path.name} does not load: {first_line(exc)}")


def signature(path: Path, config: EngineConfig) -> ort.InferenceSession:
    """Make a session that serves only to be asked for inputs and outputs; nothing is optimised.

    Raises:
        ModelLoadError: the file does not load.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = config.intra_op_threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return open_session(path, options, [Wanted(CPU, {})])
    except Exception as exc:  # foreign: see open_session
        raise does_not_load(path, exc) from exc


def placement(session: Any) -> dict[str, Counter[str]]:  # Any: untyped session
    """Return where the nodes run: provider -> operator -> how many; empty where it is not told.

    Only sessions that were made with the entry RECORD_PLACEMENT tell.
    """
    ask = getattr(session, "get_provider_graph_assignment_info", None)
    if ask is None:
        return {}
    found: dict[str, Counter[str]] = {}
    try:
        for part in ask():
            nodes = found.setdefault(part.ep_name, Counter())
            nodes.update(node.op_type for node in part.get_nodes())
    except Exception:  # foreign: a session that was not asked to record it
        return {}
    return found
