"""What is kept of a request: which requests, and how much of their tensors.

policy.py decides, once per public name and form of tensor; sampling.py draws; statistics.py,
thumbnail.py and references.py make something small of a large tensor, reduction.py chooses among
them; deferred.py is a record with such work still to be done, and reducer.py the thread that does
it. None of them knows streams, files of the spool or Redis.
"""
