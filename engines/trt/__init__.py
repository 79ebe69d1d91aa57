"""TensorRT and TensorRT-RTX behind the Engine contract: plans, and ONNX files built into plans.

Level of proof: parsing, building, caching and inspecting run in the tests with TensorRT-RTX, and
the lanes run on a stand-in for the runtime. No plan has been executed by a real runtime yet.
"""

from engines.trt.load import load_rtx, load_tensorrt

__all__ = ["load_rtx", "load_tensorrt"]
