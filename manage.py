#!/usr/bin/env python
"""Django's command line: `python3 run.py manage ARGS` calls it inside the project's environment."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tradingsite.settings")
    # Idle OpenMP threads must sleep, not spin: two trainings on two busy cores took 37-79 s without it (locks.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line

    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        sys.argv[1] = sys.argv[1].replace("-", "_")  # verify-decisions is verify_decisions
    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:  # the message names the setting, the rule and the fix: a traceback hides it
        sys.exit(str(error))


if __name__ == "__main__":
    main()
