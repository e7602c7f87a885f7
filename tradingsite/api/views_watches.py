"""Looks at the active models: drift and promise."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer

from tradingsite.api.serializers_watches import WatchDetailSerializer, WatchSerializer
from training_app.models import ModelWatch
from training_app.selectors import BULKY, newest_watches


class WatchViewSet(viewsets.ReadOnlyModelViewSet[ModelWatch]):
    """Looks at the active models, newest first: drift and promise. A single one lists its features, worst first."""

    queryset = ModelWatch.objects.select_related("artifact__scope").order_by("-id")
    filterset_fields = {
        "artifact": ["exact"], "artifact__scope__key": ["exact"], "verdict": ["exact", "in"], "asks": ["exact"],
    }  # fmt: skip

    def get_serializer_class(self) -> type[BaseSerializer[Any]]:
        return WatchDetailSerializer if self.action == "retrieve" else WatchSerializer

    def get_queryset(self) -> Any:
        features = () if self.action == "retrieve" else ("features",)
        return super().get_queryset().defer(*features, *(f"artifact__{name}" for name in BULKY))

    @extend_schema(responses=WatchSerializer(many=True), filters=False)
    @action(detail=False, pagination_class=None)
    def newest(self, request: Request) -> Response:
        """Return the newest look at the active model of each slot that was looked at."""
        return Response(WatchSerializer(list(newest_watches().values()), many=True).data)
