"""Worker clusters on one database, started as processes or as hosts of their own, and what they did judged by rows."""
