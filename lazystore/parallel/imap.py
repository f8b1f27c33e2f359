"""TEMPORARY alias while helpers work: the module is mapper.py (lazystore.parallel.imap is the function)."""

from lazystore.parallel.mapper import *  # noqa
from lazystore.parallel.mapper import Imap, imap, imap_unordered, start_imap  # noqa
from lazystore.parallel.arguments import Given as _Arguments  # noqa
