"""Build of the Cython core: the one place where compiler directives and flags are set.

Environment switches:
    LAZYSTORE_DEBUG=1                       bounds checks, asserts, -O1 -g
    LAZYSTORE_SANITIZE=address,undefined    sanitizer flags for compiler and linker
"""

from __future__ import annotations

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

CORE = Path("lazystore/_core")
DEBUG = os.environ.get("LAZYSTORE_DEBUG", "") not in ("", "0")
SANITIZE = os.environ.get("LAZYSTORE_SANITIZE", "")

DIRECTIVES = {
    "language_level": 3,
    "binding": True,
    "cdivision": True,
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
    "nonecheck": DEBUG,
    "auto_pickle": False,
}


def flags() -> tuple[list[str], list[str]]:
    """Compiler and linker flags of this build."""
    compile_args = ["-Wall", "-Wno-unused-function"]
    link_args: list[str] = []
    if DEBUG:
        compile_args += ["-O1", "-g", "-UNDEBUG", "-DCYTHON_CLINE_IN_TRACEBACK=1"]
    else:
        compile_args += ["-O3", "-DNDEBUG", "-DCYTHON_WITHOUT_ASSERTIONS"]
    if SANITIZE:
        # Unaligned loads are spelled with memcpy in the sources, so UBSan has nothing to forgive.
        compile_args += ["-g", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZE}"]
        link_args += [f"-fsanitize={SANITIZE}"]
    return compile_args, link_args


def numpy_include() -> str:
    import numpy

    return numpy.get_include()


def extensions() -> list[Extension]:
    compile_args, link_args = flags()
    found = []
    for source in sorted(CORE.glob("*.pyx")):
        uses_numpy = source.stem == "arrays"
        found.append(
            Extension(
                f"lazystore._core.{source.stem}",
                [str(source)],
                include_dirs=[numpy_include()] if uses_numpy else [],
                define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")] if uses_numpy else [],
                extra_compile_args=compile_args,
                extra_link_args=link_args,
            )
        )
    return found


setup(
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
    ext_modules=cythonize(
        extensions(),
        compiler_directives=DIRECTIVES,
        build_dir="build/cython",
        force=bool(SANITIZE) or DEBUG,
    ),
)
