#!/usr/bin/env python3
"""The one command: `python3 run.py` starts everything, `python3 run.py test` tests it, `--help` says the rest.

This file parses on every Python since 2.7, so that an old one can say what is missing instead of showing a syntax
error. What it does is in scripts/bootstrap.py.
"""

import sys

OLDEST = (3, 11)
NEWEST_FIRST = ("python3.14", "python3.13", "python3.12", "python3.11")

if sys.version_info < OLDEST:
    import os

    folders = os.environ.get("PATH", "").split(os.pathsep)
    found = [name for name in NEWEST_FIRST if any(os.access(folder + "/" + name, os.X_OK) for folder in folders)]
    advice = (
        "Install one (apt install python3.11 python3.11-venv; brew install python@3.12) and start run.py with it."
        if not found
        else "Start it with the newer one that you have: " + found[0] + " run.py"
    )
    have = ".".join(str(part) for part in sys.version_info[:2])
    sys.exit("run.py needs Python 3.11 or newer, this is " + have + " (" + sys.executable + ").\n" + advice)

from scripts.bootstrap import main  # noqa: E402 - an old Python must be told before it reads newer syntax

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
