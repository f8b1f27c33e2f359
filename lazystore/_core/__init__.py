"""The engine room: everything that runs once per item, in Cython.

``lru`` (recency lists), ``offsets`` (item offset tables), ``arena`` and ``frames`` (the
frames, who leaves first, pins and leases), ``decode`` and ``arrays`` (leaves to Python
objects), ``reader``, which walks the others from an item number to an object, and ``scan``,
which does so in order. No I/O happens here: what is not resident is asked of a loader
object one floor up.
"""
