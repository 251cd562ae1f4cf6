#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Build the compiled clients into a directory, with Debian's packages only.

    build.py [--only java|cpp] DIRECTORY

It makes ``java/Convert.class`` and ``java-client``, ``cpp/convert`` and ``cpp-client``. The two *-client files are
shell scripts with the arguments HOST PORT SOURCE TARGET.pdf. ``java-jobs`` has the arguments HOST PORT COUNT [THREADS].
``java-example`` and ``cpp-example`` are those of examples/, with the arguments SOURCE TARGET.pdf. They need the files
beside them, so the directory can be moved.

- Java: default-jdk-headless, liblibreoffice-java (libreoffice.jar, which has all of UNO's classes), libunoloader-java.
- C++: g++, libreoffice-dev (cppumaker, headers, the libuno_*.so to link with), ure (the libraries and the type
  registries types.rdb and services.rdb to run with). cppumaker makes the headers of the UNO types in a second, as in
  the SDK's own Makefiles.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent.parent / "examples"
JAR = "/usr/share/java/libreoffice.jar"
OFFICE = "/usr/lib/libreoffice"
PROGRAM = f"{OFFICE}/program"
SDK = f"{OFFICE}/sdk"

JAVA_CLIENT = f"""#!/bin/sh
exec java -cp "$(dirname "$0")/%s:{JAR}" %s "$@"
"""
CPP_CLIENT = f"""#!/bin/sh
export URE_BOOTSTRAP=vnd.sun.star.pathname:{PROGRAM}/fundamentalrc
exec "$(dirname "$0")/cpp/%s" "$@"
"""


def run(*command: str) -> None:
    """Run one command of a build."""
    subprocess.run(command, check=True)


def script(path: Path, text: str) -> None:
    """Write an executable script."""
    path.write_text(text)
    path.chmod(0o755)


def build_java(directory: Path) -> None:
    """Compile the Java clients."""
    sources = [str(HERE / "java" / f"{name}.java") for name in ("Convert", "Jobs")]
    compiler = ("javac", "-Xlint:all", "-Werror", "-cp", JAR, "-d")
    run(*compiler, str(directory / "java"), *sources)
    run(*compiler, str(directory / "java-example.d"), str(EXAMPLES / "Convert.java"))
    script(directory / "java-client", JAVA_CLIENT % ("java", "Convert"))
    script(directory / "java-jobs", JAVA_CLIENT % ("java", "Jobs"))
    script(directory / "java-example", JAVA_CLIENT % ("java-example.d", "Convert"))


def build_cpp(directory: Path) -> None:
    """Make the UNO headers, compile and link the C++ clients."""
    sources = {"convert": HERE / "cpp" / "convert.cpp", "example": EXAMPLES / "convert.cpp"}
    with tempfile.TemporaryDirectory() as headers:
        run(f"{SDK}/bin/cppumaker", "-Gc", f"-O{headers}", f"{PROGRAM}/types.rdb", f"{PROGRAM}/types/offapi.rdb")
        defines = ["-DUNX", "-DGCC", "-DLINUX", "-DCPPU_ENV=gcc3"]
        include = [f"-isystem{headers}", f"-isystem{SDK}/include"]
        libraries = [f"-L{SDK}/lib", "-luno_cppuhelpergcc3", "-luno_cppu", "-luno_salhelpergcc3", "-luno_sal"]
        paths = [f"-Wl,-rpath,{PROGRAM}", f"-Wl,-rpath-link,{PROGRAM}"]
        compiler = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", *defines, *include]
        for name, source in sources.items():
            run(*compiler, "-o", str(directory / "cpp" / name), str(source), *libraries, *paths)
    script(directory / "cpp-client", CPP_CLIENT % "convert")
    script(directory / "cpp-example", CPP_CLIENT % "example")


BUILDERS: dict[str, Callable[[Path], None]] = {"java": build_java, "cpp": build_cpp}


def main() -> None:
    """Build the clients that the arguments name."""
    parser = argparse.ArgumentParser(description="Build the Java and C++ clients.")
    parser.add_argument("--only", choices=BUILDERS)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    os.umask(0o022)
    for name in [arguments.only] if arguments.only else BUILDERS:
        (arguments.directory / name).mkdir(parents=True, exist_ok=True)
        BUILDERS[name](arguments.directory.resolve())


if __name__ == "__main__":
    main()
