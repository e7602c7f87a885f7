"""What the API's actions have in common: a service is called, and a sentence says what it did."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rest_framework.exceptions import APIException
from rest_framework.response import Response
from rest_framework.serializers import Serializer

from coverage_app.exceptions import CoverageError
from trading_app.exceptions import TradingError
from training_app.exceptions import TrainingAppError


class Refused(APIException):
    """The service will not do it; its message says why and what to do."""

    status_code = 409
    default_code = "refused"


@contextmanager
def refusals() -> Iterator[None]:
    """Turn a service's refusal into an answer 409 with its message."""
    try:
        yield
    except (CoverageError, TrainingAppError, TradingError) as error:
        raise Refused(str(error)) from error


def said(text: str) -> Response:
    """Answer with a sentence that says what was done."""
    return Response({"message": text})


def read(form: Serializer[Any]) -> dict[str, Any]:
    """Return the validated values of a request; wrong ones are answered 400 with each field's rule."""
    form.is_valid(raise_exception=True)
    return dict(form.validated_data)
