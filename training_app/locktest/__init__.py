"""The hammer of the lock protocol: real processes, real kills, and a judge (`manage.py locktest`, docs/locks.md).

`hammer` starts and strikes the processes, `worker` is what they do, `history` is what the database itself writes down,
`judge` compares what the processes were told with what the database did. Nothing here is used by the product.
"""
