"""The kill test: a bot on an exchange of its own is killed again and again, and nothing may be lost or doubled."""
