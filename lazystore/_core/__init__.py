"""The engine room: everything that runs once per item, in Cython.

``lru`` (recency lists), ``offsets`` (item offset tables), ``arena`` and ``frames`` (the
frames, who leaves first, pins and leases), ``decode``, ``arrays`` and ``values`` (leaves to
Python objects), ``reader``, which walks the others from an item number to an object, ``scan``,
which does so in order, ``slab`` and ``walk``, which do so in any order, ``collate`` (columns
of a batch), ``permute``, ``blocks`` and ``hands`` (shuffles as arithmetic), and ``index_scan``
(the chunks of an index.json). No I/O happens here: what is not resident is asked of a loader
object one floor up.

For the lazy room: ``cache_map`` over ``cache_table`` (keys to values with weights, S3-FIFO and LRU),
``weigh`` (bytes an object holds), ``gear`` (content-defined cuts), and for its disk tier ``checksum``
(CRC-32C), ``tree`` (plain objects as bytes), ``noise``, ``record_log`` and ``segment_file`` (which do read and
write: one system call a record).
"""
