"""The commands of ``lazystore``, a module each: ``add`` says what it takes, ``run`` does it.

Modules here are light to import: what a command needs, it imports when it runs. Shared by them:
``options`` (arguments of datasets), ``values`` (items as text and JSON), ``layout`` (what is stored where),
``forecast`` (the arithmetic of ``plan`` and ``info``).
"""

#: In the order of the help text.
COMMANDS = ("demo", "info", "head", "cat", "verify", "convert", "index", "plan")
