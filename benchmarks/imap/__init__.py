"""`lazystore.imap` beside a plain loop, the standard library's pools, joblib, mpire, and its own best setting.

    python benchmarks/bench_imap.py --peers [--cell sleep] [--rounds 3] [--json grid.json]

``work`` is what the workers run, ``cells`` the grid, ``contenders`` the ways to run it, ``host`` the child process that
measures, ``rounds`` who runs when, ``tables`` what is made of the figures.
"""
