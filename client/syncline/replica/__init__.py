"""Replicas: exact copies that keep themselves, in memory or in a SQLite file.

::

    replica.py    the public object: reads, waiting, callbacks
    _follow.py    the loop that brings it up to date and repairs it
    _apply.py     its rules, without I/O: when a copy may be shown, mended, or has to begin anew
    _copy.py      what the loop asks of a place for records
    _memory.py    the place in memory
    _file.py      the place in a file; _file_schema.py, _file_write.py, _file_read.py belong to it
    _repair.py    finding what differs by digests of ranges
    _changes.py   callbacks and iterators that hear of changes
"""
