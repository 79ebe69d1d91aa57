"""Front processes that take the connections, and one engine process that serves them all.

supervisor.py starts and replaces the processes; front_process.py and engine_process.py are theirs;
remote_pipeline.py and engine_end.py are the two ends of a link; frames.py is what travels on it.
With `server.workers = 1` nothing of this package is imported.
"""
