"""What bytes mean: indexes, leaves, containers, compression, and the writer. No I/O of datasets here."""
