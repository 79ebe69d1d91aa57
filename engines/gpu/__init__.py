"""What every GPU engine shares: lanes of buffers, memory and streams, recorded graphs.

`LaneEngine` (engine.py) drives a runtime, seen as an `Executor` (executor.py), over a `Memory`
(memory.py): that of a GPU (cuda.py), or host memory that keeps the same rules (host.py).
"""
