"""Wrong settings are refused at once, each with its name, its value, the rule and the fix."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from tradingsite.options import OPTIONS, PREFIXES, load_options


def test_defaults_need_no_environment() -> None:
    values = load_options(environment={})
    assert values["EXCHANGE"] == "simulated"
    assert set(values) == {option.name for option in OPTIONS}


def test_every_default_obeys_its_own_rule() -> None:
    for option in OPTIONS:
        shown = ",".join(option.default) if isinstance(option.default, tuple) else str(option.default)
        if shown:
            assert option.parse(shown) == option.default, option.name


@pytest.mark.parametrize(
    "name, value, rule",
    [
        ("EXCHANGE", "bianance", "must be one of simulated, replay, paper"),
        ("TIMEFRAME", "1x", "must be one of 5m, 15m, 1h, 4h, 1d"),
        ("SIM_SYMBOLS", "many", "must be a whole number from 1 to 5000"),
        ("SIM_SPEED", "nan", "must be a number from 1 to 100000"),
        ("RISK_DAILY_LOSS", "5", "must be a number from 0 to 1"),
        ("EVALUATION_INTERVAL", "60", "must be a whole number from 300 to 86400"),
        ("REPLAY_FROM", "01.06.2025", "must be a UTC date like 2025-06-01"),
        ("DEBUG", "maybe", "must be one of"),
    ],
)
def test_a_wrong_value_is_named_with_its_rule(name: str, value: str, rule: str) -> None:
    with pytest.raises(ImproperlyConfigured) as refusal:
        load_options(environment={name: value})
    assert f"{name}={value!r}" in str(refusal.value)
    assert rule in str(refusal.value)


def test_a_misspelt_name_gets_the_nearest_one() -> None:
    with pytest.raises(ImproperlyConfigured, match="REPLAY_FORM is not a setting: did you mean REPLAY_FROM"):
        load_options(environment={"REPLAY_FORM": "2025-06-01"})


def test_every_wrong_setting_is_listed_at_once() -> None:
    with pytest.raises(ImproperlyConfigured) as refusal:
        load_options(environment={"EXCHANGE": "x", "TIMEFRAME": "y", "RISK_MAXLEVERAGE": "2"})
    assert str(refusal.value).count("\n  - ") == 3


def test_a_secret_is_never_shown(tmp_path: Path) -> None:
    with pytest.raises(ImproperlyConfigured) as refusal:
        load_options(environment={"SECRET_KEY_FILE": str(tmp_path / "missing")})
    assert "cannot be read" in str(refusal.value)


def test_a_value_may_come_from_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text("s3cret\n")
    assert load_options(environment={"SECRET_KEY_FILE": str(secret)})["SECRET_KEY"] == "s3cret"


def test_the_environment_wins_over_the_env_file(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("# speed\nSIM_SPEED=10\nSIM_SEED='3'\n")
    values = load_options(environment={"SIM_SPEED": "20"}, env_file=env_file)
    assert (values["SIM_SPEED"], values["SIM_SEED"]) == (20.0, 3)


def test_an_unknown_name_in_the_env_file_is_refused_even_without_a_prefix(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("TIMEFRAMES=1h\n")
    with pytest.raises(ImproperlyConfigured, match="did you mean TIMEFRAME"):
        load_options(environment={}, env_file=env_file)


def test_a_line_of_the_env_file_that_is_no_assignment_is_named(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("SIM_SEED=3\nwhat\n")
    with pytest.raises(ImproperlyConfigured, match=r"\.env:2: 'what' is not NAME=value"):
        load_options(environment={}, env_file=env_file)


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"EXCHANGE": "replay"}, "CANDLE_ARCHIVE is empty: EXCHANGE=replay needs it"),
        (
            {"EXCHANGE": "replay", "CANDLE_ARCHIVE": "/no/such", "EXCHANGE_MARKET": "x", "REPLAY_FROM": "2025-06-01"},
            "CANDLE_ARCHIVE='/no/such': is not a folder",
        ),
        ({"EXCHANGE": "paper"}, "EXCHANGE=paper needs a ccxt exchange id"),
        ({"UNIVERSE_MODE": "fixed"}, "UNIVERSE_MODE=fixed needs codes"),
        ({"HISTORY_MIN_DAYS": "900"}, "must be at most HISTORY_TARGET_DAYS=730"),
    ],
)
def test_rules_between_settings(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=message):
        load_options(environment=environment)


def test_every_prefix_belongs_to_a_setting() -> None:
    for prefix in PREFIXES:
        assert any(option.name.startswith(prefix) for option in OPTIONS), prefix


def test_a_wrong_setting_is_told_in_a_sentence_without_a_traceback() -> None:
    root = Path(__file__).resolve().parents[2]
    ran = subprocess.run(
        [sys.executable, "manage.py", "check"],
        cwd=root,
        env={**os.environ, "SIM_SPED": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode != 0
    assert "SIM_SPED is not a setting: did you mean SIM_SPEED?" in ran.stderr
    assert "Traceback" not in ran.stderr
