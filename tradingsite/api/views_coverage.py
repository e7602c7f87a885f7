"""Symbols with their derived state, blocks, and refreshes of the universe."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db.models import QuerySet
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer

from coverage_app import services
from coverage_app.choices import BlockReason
from coverage_app.models import Block, Symbol, UniverseRefresh
from ops_app.people import acting_user
from tradingsite.api import serializers
from tradingsite.api.actions import read, refusals, said
from tradingsite.permissions import OPERATOR
from training_app.selectors import State, symbol_states


class SymbolFilter(filters.FilterSet):
    state = filters.ChoiceFilter(choices=[(state.value, state.value) for state in State], method="of_state")
    reason = filters.ChoiceFilter(choices=BlockReason.choices, method="of_reason")

    class Meta:
        model = Symbol
        fields = ["code", "in_universe", "active"]

    def of_state(self, queryset: QuerySet[Symbol], _name: str, value: str) -> QuerySet[Symbol]:
        return queryset.filter(pk__in=[each.symbol_id for each in symbol_states() if each.state == value])

    def of_reason(self, queryset: QuerySet[Symbol], _name: str, value: str) -> QuerySet[Symbol]:
        return queryset.filter(pk__in=Block.objects.open().filter(reason=value).values("symbol"))


class SymbolViewSet(viewsets.ReadOnlyModelViewSet[Symbol]):
    """Symbols of the market, each with its state and the reason for it."""

    queryset = Symbol.objects.order_by("code")
    serializer_class = serializers.SymbolSerializer
    filterset_class = SymbolFilter
    required_role = OPERATOR

    def get_queryset(self) -> QuerySet[Symbol]:
        return super().get_queryset().filter(market=settings.EXCHANGE_MARKET)

    def get_serializer(self, *args: Any, **kwargs: Any) -> BaseSerializer[Symbol]:
        """Derive the states of all symbols that are shown at once: a constant number of queries."""
        if args and self.action in ("list", "retrieve"):
            shown = args[0] if kwargs.get("many") else [args[0]]
            states = symbol_states(ids=[symbol.pk for symbol in shown])
            kwargs["context"] = {**self.get_serializer_context(), "states": {s.symbol_id: s for s in states}}
        return super().get_serializer(*args, **kwargs)

    @extend_schema(request=None, responses=serializers.MessageSerializer)
    @action(detail=True, methods=["post"])
    def unblock(self, request: Request, pk: str) -> Response:
        """Lift every open block of the symbol; a cause that still holds comes back at the next evaluation."""
        with refusals():
            outcome = services.unblock(symbol=self.get_object(), user=acting_user(request))
        return said(outcome.text)

    @extend_schema(request=serializers.WhySerializer, responses=serializers.MessageSerializer)
    @action(detail=True, methods=["post"])
    def block(self, request: Request, pk: str) -> Response:
        """Block the symbol until a person lifts it."""
        why = read(serializers.WhySerializer(data=request.data))["why"]
        with refusals():
            outcome = services.block_manually(symbol=self.get_object(), user=acting_user(request), why=why)
        return said(outcome.text)

    @extend_schema(request=None, responses=serializers.MessageSerializer)
    @action(detail=True, methods=["post"])
    def evaluate(self, request: Request, pk: str) -> Response:
        """Judge the symbol's history now."""
        outcome = services.evaluate_now(symbol_ids=[self.get_object().pk], user=acting_user(request))
        return said(outcome.text)


class BlockViewSet(viewsets.ReadOnlyModelViewSet[Block]):
    """Blocks, newest first; `closed_at__isnull=true` for the open ones."""

    queryset = Block.objects.select_related("symbol").order_by("-id")
    serializer_class = serializers.BlockSerializer
    filterset_fields = {
        "reason": ["exact", "in"], "symbol": ["exact"], "symbol__code": ["exact"], "permanent": ["exact"],
        "closed_at": ["isnull"],
    }  # fmt: skip
    required_role = OPERATOR

    @extend_schema(request=None, responses=serializers.MessageSerializer)
    @action(detail=True, methods=["post"])
    def lift(self, request: Request, pk: str) -> Response:
        """Lift this block; a cause that still holds comes back at the next evaluation."""
        with refusals():
            outcome = services.unblock(block_id=self.get_object().pk, user=acting_user(request))
        return said(outcome.text)


class UniverseRefreshViewSet(mixins.ListModelMixin, viewsets.GenericViewSet[UniverseRefresh]):
    """What the exchange listed, and when."""

    queryset = UniverseRefresh.objects.order_by("-id")
    serializer_class = serializers.UniverseRefreshSerializer
    filterset_fields = {"market": ["exact"], "trigger": ["exact"]}
