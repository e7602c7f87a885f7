"""What the lock protocol wants in one place is in one place: the end of a lease, and talking to the queue."""

from __future__ import annotations

import ast

from tests.conventions import walker

LEASES, QUEUE = "ops_app/leases.py", "ops_app/queue.py"
COMPARED = tuple(f"expires_at__{lookup}" for lookup in ("lt", "lte", "gt", "gte"))


def comparisons(module: ast.Module) -> list[int]:
    """Return the lines that compare the end of a lease, as a keyword of a filter or as the text of one."""
    return [
        node.value.lineno if isinstance(node, ast.keyword) else node.lineno
        for node in ast.walk(module)
        if (isinstance(node, ast.keyword) and (node.arg or "").endswith(COMPARED))
        or (isinstance(node, ast.Constant) and str(node.value).endswith(COMPARED))
    ]


def test_t11_only_the_module_of_leases_says_when_one_is_over() -> None:
    found = [
        f"{walker.name_of(path)}:{line}"
        for path in walker.package_files()
        if walker.name_of(path) != LEASES
        for line in comparisons(walker.tree(path))
    ]
    assert found == [], f"use expired() and unexpired() of {LEASES}: they compare with the database's clock"


def test_the_rule_itself_sees_a_comparison() -> None:
    source = "rows.filter(lease_expires_at__lt=now)\nQ(('expires_at__gte', now))\nrows.filter(expires_at=None)"
    assert sorted(comparisons(ast.parse(source))) == [1, 2]


def test_q2_only_the_module_of_the_queue_sends_messages() -> None:
    found = [
        f"{walker.name_of(path)}:{line}: {name}"
        for path in walker.package_files()
        if walker.name_of(path) != QUEUE
        for line, name, _ in walker.uses(walker.tree(path))
        if name.startswith("django_q.tasks")
    ]
    assert found == [], f"send through {QUEUE}, which names the queue and refuses what must not go into a message"
