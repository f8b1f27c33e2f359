"""lazystore beside other libraries: everyone on the format it writes itself, the same samples, the same machine.

``python benchmarks/compare`` runs it. ``contenders.py`` says who takes part in what, ``works.py`` what a
child measures, ``libraries.py`` how each library opens a dataset, ``tables.py`` what is printed.
"""
