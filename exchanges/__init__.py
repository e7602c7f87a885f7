"""The exchange port and its implementations. No Django here; the only package that imports ccxt (lazily)."""
