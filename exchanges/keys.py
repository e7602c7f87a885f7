"""Keys of an account: read when they are needed and by whoever needs them, and never shown."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from exchanges.errors import ConfigurationError

HIDDEN = "***"


class Secret:
    """A secret setting. Nothing is read before `read()`, so that a process without a right to it can start."""

    def __init__(self, name: str, source: Callable[[], str]) -> None:
        self.name = name
        self._source = source

    def read(self) -> str:
        """Return the value, or the empty text if it is not set. Raises ConfigurationError for an unsafe file."""
        return self._source()

    def __repr__(self) -> str:
        return HIDDEN

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __reduce__(self) -> str:
        raise TypeError(f"{self.name} is a secret: it goes into no queue and no file")


def require_private(name: str, path: Path) -> None:
    """Raise ConfigurationError if anybody but the owner may read or change the file that holds `name`."""
    mode = path.stat().st_mode
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigurationError(
            f"{name} is in {path}, which others may read or change (mode {stat.S_IMODE(mode):o}). Run: chmod 600 {path}"
        )


def read_private_file(name: str, path: Path) -> str:
    """Return the file's text without white space around it. Raises ConfigurationError if others may read it."""
    try:
        require_private(name, path)
        return path.read_text().strip()
    except OSError as error:
        raise ConfigurationError(
            f"{name}_FILE={path}: cannot be read ({error.strerror}). Mend the path or its rights."
        ) from error


@dataclass(frozen=True, slots=True)
class Keys:
    """Access to one account."""

    api_key: str
    secret: str
    passphrase: str = ""

    def __post_init__(self) -> None:
        missing = [name for name, value in (("API_KEY", self.api_key), ("API_SECRET", self.secret)) if not value]
        if missing:
            raise ConfigurationError(
                f"{' and '.join(missing)}: not set, and EXCHANGE=live needs the keys of an account. Put each into a "
                f"file that only its owner can read (chmod 600) and name it: {missing[0]}_FILE=/path/to/it"
            )

    def __repr__(self) -> str:
        return f"Keys({HIDDEN})"

    def hide(self, text: str) -> str:
        """Return `text` without any of them: venues quote the key that they refuse."""
        for value in (self.api_key, self.secret, self.passphrase):
            if value:
                text = text.replace(value, HIDDEN)
        return text
