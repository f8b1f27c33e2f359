"""The engine room: everything that runs once per item, in Cython.

``lru`` (recency lists), ``offsets`` (item offset tables), ``frames`` (the arena of
frames, pins and leases), ``decode`` and ``arrays`` (leaves to Python objects), and
``reader``, which walks the others from an item number to an object. No I/O happens
here: what is not resident is asked of a loader object one floor up.
"""
