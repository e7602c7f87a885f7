"""Runs, artifacts, which one is active, and the history of activations."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import mixins, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer

from ops_app.people import acting_user
from tradingsite.api import serializers
from tradingsite.api.actions import read, refusals, said
from tradingsite.dashboard import asked_for
from tradingsite.permissions import ADMIN, OPERATOR
from training_app import activation, services
from training_app.models import Activation, ActiveModel, ModelArtifact, TrainingRun
from training_app.selectors import open_runs


class RunViewSet(viewsets.ReadOnlyModelViewSet[TrainingRun]):
    """Training runs, newest first, with progress, verdicts, tuning trials and log."""

    queryset = TrainingRun.objects.select_related("scope").order_by("-id")
    filterset_fields = {"state": ["exact", "in"], "trigger": ["exact"], "scope__key": ["exact"]}
    required_role = OPERATOR

    def get_serializer_class(self) -> type[BaseSerializer[Any]]:
        return serializers.RunDetailSerializer if self.action == "retrieve" else serializers.RunSerializer

    def get_queryset(self) -> Any:
        rows = super().get_queryset()
        return rows.prefetch_related("run_symbols__symbol", "tuning_trials") if self.action == "retrieve" else rows

    @extend_schema(request=None, responses=serializers.MessageSerializer)
    @action(detail=False, methods=["post"], url_path="start")
    def start(self, request: Request) -> Response:
        """Ask for a run of every scope that has symbols to learn."""
        before = {run.pk for run in open_runs()}
        with refusals():
            runs = services.train_now(user=acting_user(request))
        return said(asked_for(runs, before=before))

    @extend_schema(request=serializers.OptionalWhySerializer, responses=serializers.MessageSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """End an open run without a result; its symbols wait for the next one."""
        why = read(serializers.OptionalWhySerializer(data=request.data))["why"]
        with refusals():
            run = services.cancel(run=self.get_object(), user=acting_user(request), why=why or "by a person")
        return said(f"Run {run.pk} was cancelled.")


class ArtifactViewSet(viewsets.ReadOnlyModelViewSet[ModelArtifact]):
    """Artifacts, newest first, with gates and metrics."""

    queryset = ModelArtifact.objects.select_related("scope").order_by("-id")
    serializer_class = serializers.ArtifactSerializer
    filterset_fields = {"gates_passed": ["exact"], "scope__key": ["exact"], "training_mode": ["exact"]}
    required_role = ADMIN

    @extend_schema(request=serializers.OptionalWhySerializer, responses={202: serializers.ActivationSerializer})
    @action(detail=True, methods=["post"])
    def activate(self, request: Request, pk: str) -> Response:
        """Ask for this artifact to serve its slot: a worker verifies it first; see the activation for the outcome."""
        why = read(serializers.OptionalWhySerializer(data=request.data))["why"]
        with refusals():
            asked = activation.request_activation(artifact=self.get_object(), user=acting_user(request), reason=why)
        return Response(serializers.ActivationSerializer(asked).data, status=202)


class ActiveModelViewSet(viewsets.ReadOnlyModelViewSet[ActiveModel]):
    """The artifact of each slot: what the bot reads."""

    queryset = ActiveModel.objects.order_by("slot")
    serializer_class = serializers.ActiveModelSerializer
    filterset_fields = {"slot": ["exact"], "generation": ["exact", "gt"]}
    required_role = ADMIN

    @extend_schema(request=serializers.OptionalWhySerializer, responses={202: serializers.ActivationSerializer})
    @action(detail=True, methods=["post"])
    def rollback(self, request: Request, pk: str) -> Response:
        """Ask for the artifact that served this slot before; the present one is not promoted again by itself."""
        why = read(serializers.OptionalWhySerializer(data=request.data))["why"]
        with refusals():
            asked = activation.roll_back(slot=self.get_object().slot, user=acting_user(request), reason=why)
        return Response(serializers.ActivationSerializer(asked).data, status=202)


class ActivationViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet[Activation]):
    """The history of activations, newest first."""

    queryset = Activation.objects.order_by("-id")
    serializer_class = serializers.ActivationSerializer
    filterset_fields = {"slot": ["exact"], "state": ["exact"], "kind": ["exact"]}
