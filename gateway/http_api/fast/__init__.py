"""The HTTP/1 listener of the predict port: infer calls are answered before ASGI.

Read in this order: heads.py and framing.py (bytes, no sockets), answers.py (what goes back),
exchange.py (one infer call), slow.py (what is left to uvicorn and Starlette), connection.py (one
connection: order, bounds, timeouts), listener.py (all of them).
"""
