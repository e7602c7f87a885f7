"""What docs/scale-out.md and the systemd units promise is there: settings, commands, files, exit codes."""

from __future__ import annotations

import configparser
import importlib.util
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import get_commands

from ops_app import versions
from tradingsite.options import BY_NAME, load_options

ROOT = Path(__file__).resolve().parents[2]
DOC = (ROOT / "docs" / "scale-out.md").read_text()
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
#: Capital words with an underscore that are no settings of ours.
FOREIGN = {
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SHARED_CREDENTIALS_FILE", "DASK_THREADS", "NAME_FILE",
    "NUMBA_CACHE_DIR", "OMP_WAIT_POLICY", "Q_CLUSTER_NAME",
}  # fmt: skip


def unit(path: Path) -> configparser.ConfigParser:
    """Parse a unit; of a repeated key the last value is kept."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys keep their capitals
    parser.read_string(path.read_text().replace("\\\n", " "))
    return parser


def command_of(path: Path) -> list[str]:
    return shlex.split(unit(path)["Service"]["ExecStart"])


def test_every_setting_that_the_guide_names_exists() -> None:
    named = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b(?!\*)", DOC)) - FOREIGN
    assert {"STORAGE_URL", "DATABASE_URL", "REDIS_URL", "TRAIN_DASK_SCHEDULER", "HOST_MEMORY_MB"} <= named
    assert sorted(named - set(BY_NAME)) == []
    for prefix in re.findall(r"`([A-Z]+_)\*`", DOC):
        assert any(name.startswith(prefix) for name in BY_NAME), prefix


def test_every_command_and_file_that_the_guide_names_exists() -> None:
    commands = set(re.findall(r"manage(?:\.py)? ([a-z_]+)", DOC))
    assert {"doctor", "setup", "migrate", "options", "backup"} <= commands
    assert sorted(commands - set(get_commands())) == []
    named = set(re.findall(r"tradingbot-[a-z]+\.service", DOC))
    assert named == {path.name for path in UNITS}


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_unit_starts_what_exists_and_may_write_to_its_own_folders_only(path: Path) -> None:
    service = unit(path)["Service"]
    program, *arguments = command_of(path)
    assert program == "/opt/tradingbot/.venv/bin/python"
    if arguments[0] == "manage.py":
        assert arguments[1] in get_commands()
    else:
        assert arguments[0] == "-m"
        assert importlib.util.find_spec(arguments[1]) is not None
    for name in set(re.findall(r"\$\{?([A-Z_]+)", service["ExecStart"])) - FOREIGN:
        assert name in BY_NAME
    assert service["User"] == "tradingbot"
    assert (service["NoNewPrivileges"], service["ProtectSystem"], service["Restart"]) == ("yes", "strict", "always")
    assert service["ReadWritePaths"] == "/var/lib/tradingbot"
    if "manage.py" in arguments:
        assert int(service["RestartPreventExitStatus"]) == versions.OUTDATED


def test_each_queue_has_a_unit_whose_name_of_the_queue_is_the_one_that_it_serves() -> None:
    served = {}
    for path in UNITS:
        if "qworker" in command_of(path):
            queue = command_of(path)[-1]
            served[queue] = f"Q_CLUSTER_NAME={queue}" in path.read_text()
    assert served == {"light": True, "training": True}


def test_systemd_understands_the_units_where_it_is_installed(tmp_path: Path) -> None:
    """Elsewhere the tests above are what there is: it takes no skip to say so."""
    analyze = shutil.which("systemd-analyze")
    copies = [tmp_path / path.name for path in UNITS]
    for path, copy in zip(UNITS, copies, strict=True):
        copy.write_text(path.read_text().replace("/opt/tradingbot/.venv/bin/python", "/bin/true"))
    assert len(copies) == 5
    if analyze is not None:
        done = subprocess.run([analyze, "verify", *copies], capture_output=True, text=True, check=False)
        assert [line for line in done.stderr.splitlines() if "tradingbot" in line] == []


def test_a_secret_in_a_wrong_storage_url_is_never_shown() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"STORAGE_URL=.*must not hold credentials") as error:
        load_options(environment={"STORAGE_URL": "s3://key:s3cret@bucket"})
    assert "s3cret" not in str(error.value)
