"""`manage.py bench`: what the work costs, and what of that cannot be avoided, measured in one run (docs/bench.md)."""
