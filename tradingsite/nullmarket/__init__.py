"""`manage.py nullmarket`: the live pipeline where there is nothing to learn (docs/null-market.md)."""
