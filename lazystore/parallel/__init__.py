"""Functions run over streams by workers (`imap`), plans for that, and datasets written by many workers."""
