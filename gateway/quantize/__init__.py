"""Makes a quantised version of an ONNX model, and says how far its answers are from its parent's.

In the order of a run, each part a file that knows nothing of the ones before it:

    graphs.py       an ONNX file: read, names of its nodes, its signature, its bytes
    samples.py      rows to calibrate with and to compare on: from an .npz file, split, batched
    logged.py       the same from records of the prediction log
    fp16.py         to FP16
    ranges.py       which values FP16 cannot hold
    int8.py         to INT8 with QuantizeLinear and DequantizeLinear nodes (QDQ)
    comparison.py   parent and child answer the same rows
    placing.py      the finished file, put in place at once

The child has the parent's inputs and outputs, so that it can be another version of the same model.
Needs onnx and onnxruntime, imported when they are used. gateway/cli/quantize.py is the command,
docs/quantized-models.md the way from one version to the next.
"""
