"""What a GPU does under the gateway: `python -m loadtests.gpu`; see docs/gpu-results.md."""
