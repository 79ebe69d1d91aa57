"""Models of torch: programs of torch.export, packages of AOTInductor, TorchScript; never a pickle.

`load` is the engine's loader (load.py). formats.py tells what a file is, vetting.py keeps code out
of it, exported.py, compiled.py and script.py make a program.Program of it; engine.py runs that on
arrays, executor.py over the lanes of a GPU.
"""

from engines.pytorch.engine import TorchEngine
from engines.pytorch.load import load

__all__ = ["TorchEngine", "load"]
