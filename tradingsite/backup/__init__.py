"""A consistent copy of the whole installation while it runs, and the way back.

    <folder>/<time>/{manifest.json, database.sqlite3 | database.dump, ledger/, artifacts/, candles/}

What makes the copy consistent, although web, workers and bot go on writing:

1. The ledgers (the simulated exchange's memory) are locked for writing, and snapshots of the ledgers and of the
   database are opened under this lock. So both are of one instant, and what they say together is what a kill -9 of the
   bot at that instant would have left: an order that the rows know as SENDING and the ledger does not know, or the
   other way round, which the bot's reconciliation decides by evidence at every start (I16). The lock
   lasts milliseconds.
2. The database is copied from its snapshot. Nobody waits for it.
3. Then the files. An artifact is complete before its row is committed and never changes (T13), and the lease RETENTION
   keeps pruning from removing one meanwhile. A month of candles is replaced by a rename, so what is opened is whole; it
   may be newer than the rows, never older. That is safe: stored candles are closed candles, which do not change, the
   next ingest merges what it fetches again, and a training reads up to the cut-off in its row.

Secrets are not part of a backup: no secret_key, no admin_password, no .env. Password hashes and API tokens are rows of
the database, so the copy is readable by its owner only all the same.
"""
