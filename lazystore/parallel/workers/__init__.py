"""Those who run items for `imap`: worker processes, threads, executors, and what runs a chunk wherever it is."""
