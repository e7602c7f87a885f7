"""The OpenAPI description of what every view has in common: its errors."""

from __future__ import annotations

from typing import Any, Literal

from drf_spectacular.openapi import AutoSchema as SpectacularAutoSchema
from drf_spectacular.utils import OpenApiResponse
from rest_framework.permissions import SAFE_METHODS

from tradingsite.api.problems import MEDIA_TYPE
from tradingsite.api.serializers import ProblemSerializer

PROBLEMS = {
    400: "A value is wrong: `errors` names the field and its rule.",
    401: "No token, or a wrong one.",
    403: "The role does not allow it.",
    404: "There is no such row, or no such page.",
    409: "It cannot be done in the present state: `detail` says why.",
    429: "Too many tries: wait.",
}


class AutoSchema(SpectacularAutoSchema):
    """drf-spectacular's, with the problem details that every operation may answer."""

    def _get_response_bodies(self, direction: Literal["request", "response"] = "response") -> dict[str, Any]:
        bodies = super()._get_response_bodies(direction=direction)
        for status in self._problem_statuses():
            problem = OpenApiResponse(ProblemSerializer, description=PROBLEMS[status])
            bodies[str(status)] = self._get_response_for_code(problem, str(status), media_types=[MEDIA_TYPE])
        return bodies

    def _problem_statuses(self) -> list[int]:
        statuses = [401, 403]
        if self.method not in SAFE_METHODS or self.get_filter_backends():
            statuses.append(400)
        if "{" in self.path or self._is_list_view():
            statuses.append(404)
        if self.method not in SAFE_METHODS:
            statuses.append(409)
        if getattr(self.view, "throttle_scope", None):
            statuses.append(429)
        return sorted(statuses)
