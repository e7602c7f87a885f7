"""A local S3 server (moto) for tests: in this process, on a free port of the loopback device."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator

import pytest

from marketdata.bucket import Bucket, client_of, close_clients
from marketdata.places import BucketAddress

BUCKET = "candles-and-models"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The server's address; it knows one bucket, and this process has credentials for it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "a-key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        client_of(BucketAddress(BUCKET, endpoint=endpoint)).create_bucket(Bucket=BUCKET)
        yield endpoint
        close_clients()
        server.stop()


@pytest.fixture
def bucket(s3_endpoint: str) -> Bucket:
    """A prefix of its own in the local server's bucket."""
    return Bucket(BucketAddress(BUCKET, uuid.uuid4().hex, s3_endpoint))
