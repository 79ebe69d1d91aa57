"""Adapters of other projects' servers for `make bench`; each runs in an environment of its own.

`serve.py MODEL PORT` serves the ONNX file on loopback until it is told to end. These files import
what is installed only there, and nothing of Sluice. How each is set up is told in bench/peers.py.
"""
