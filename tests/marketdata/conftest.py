"""Fixtures of the market data tests."""

from pathlib import Path

import pytest

from marketdata.places import Folder, Place
from tests.s3 import bucket, s3_endpoint  # noqa: F401 - fixtures


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Each kind of place that files are kept in."""
    return Folder(tmp_path / "store") if request.param == "folder" else request.getfixturevalue("bucket")
