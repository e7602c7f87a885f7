"""How `runall` shows the first minutes: a live block on a terminal, elsewhere single lines that only say news."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType

from django.db import DatabaseError, close_old_connections
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from ops_app import clock, stages
from ops_app.supervisor import Supervisor, states

READ_SECONDS = 2.0
LIVE_SECONDS = 1800.0
REPEAT_SECONDS = 30.0
BAR_WIDTH = 20


def bar(share: float) -> str:
    """Return a bar of 20 characters for a share of 0..1, with its percentage."""
    share = min(max(share, 0.0), 1.0)
    filled = round(share * BAR_WIDTH)
    return f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {share:4.0%}"


def line(name: str, stage: stages.Stage) -> str:
    mark = "+" if stage.done else " "
    progress = "" if stage.share is None or stage.done else f"{bar(stage.share)} "
    return f"{mark} {name:<10} {progress}{stage.text}"


def is_news(before: stages.Stage | None, now: stages.Stage, *, seconds: float) -> bool:
    """Tell whether a stage is worth a new plain line, `seconds` after its last one."""
    if before is None or before.done != now.done:
        return True
    if now.share is not None and before.share is not None and abs(now.share - before.share) >= 0.25:
        return True
    return now.text != before.text and not now.done and seconds >= REPEAT_SECONDS


class Progress(AbstractContextManager["Progress"]):
    """Shows stages until all are done (or half an hour has passed), then only what the supervisor says."""

    def __init__(self, *, write: Callable[[str], None], terminal: bool, quiet: bool) -> None:
        self.write = write
        self.quiet = quiet
        self.live = Live(console=Console(), auto_refresh=False, transient=False) if terminal and not quiet else None
        self.over = quiet
        self.began = clock.monotonic()
        self._next_read = 0.0
        self._shown: dict[str, tuple[stages.Stage, float]] = {}

    def __enter__(self) -> Progress:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_live()

    def _end_live(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def say(self, text: str) -> None:
        """Print a line for good, above the live block if there is one."""
        if self.live is not None:
            self.live.console.print(Text(text))
        else:
            self.write(text)

    def show(self, supervisor: Supervisor) -> None:
        """Show what is new, at most every two seconds."""
        if self.over or clock.monotonic() < self._next_read:
            return
        self._next_read = clock.monotonic() + READ_SECONDS
        try:
            close_old_connections()
            read = stages.read_all()
        except DatabaseError as error:
            read = [("database", stages.Stage(text=f"cannot be read now: {str(error).strip().splitlines()[0]}"))]
        if self.live is not None:
            programs = " | ".join(f"{name} {state}" for name, state in states(supervisor))
            rows = [Text(line(name, stage), no_wrap=True, overflow="ellipsis") for name, stage in read]
            self.live.update(Group(*rows, Text(programs, style="dim")), refresh=True)
        else:
            self._show_plain(read)
        if all(stage.done for _, stage in read) or clock.monotonic() - self.began > LIVE_SECONDS:
            self.over = True
            self._end_live()
            self.write("Everything runs. From now on only what goes wrong is shown here.")

    def _show_plain(self, read: list[tuple[str, stages.Stage]]) -> None:
        for name, stage in read:
            before, at = self._shown.get(name, (None, 0.0))
            if is_news(before, stage, seconds=clock.monotonic() - at):
                self._shown[name] = (stage, clock.monotonic())
                elapsed = f"  ({clock.monotonic() - self.began:.0f} s)" if stage.done else ""
                self.write(line(name, stage) + elapsed)
