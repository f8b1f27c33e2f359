"""The hub that the documents' hub datasets are read from."""

from __future__ import annotations

from support.hub import hub as hub
from support.hub import impatient as impatient
from support.hub import start

start()
