"""Bots and what they did with money."""

from __future__ import annotations

from drf_spectacular.utils import extend_schema
from rest_framework import mixins, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from ops_app.people import acting_user
from quant.reasons import reason
from trading_app import services
from trading_app.choices import DesiredState
from trading_app.models import Bot, Decision, EquityPoint, Fill, Order, Position, RiskEvent
from tradingsite.api import serializers
from tradingsite.api.actions import read, refusals, said
from tradingsite.permissions import ADMIN


class BotViewSet(viewsets.ReadOnlyModelViewSet[Bot]):
    """Bots: what is asked of them, their limits, and what they last did."""

    queryset = Bot.objects.order_by("name")
    serializer_class = serializers.BotSerializer
    lookup_field = "name"
    lookup_value_regex = r"[^/.]+"
    required_role = ADMIN

    @extend_schema(request=serializers.DesiredStateSerializer, responses=serializers.MessageSerializer)
    @action(detail=True, methods=["post"])
    def state(self, request: Request, name: str) -> Response:
        """Ask the bot to run, pause, close only, or stop."""
        wanted = read(serializers.DesiredStateSerializer(data=request.data))["state"]
        bot = self.get_object()
        with refusals():
            changed = services.set_desired_state(bot=bot, state=wanted, user=acting_user(request))
        label = DesiredState(wanted).label
        return said(f"{bot.name}: {label}." if changed else f"{bot.name} was asked for that already: {label}.")

    @extend_schema(request=serializers.WhySerializer, responses=serializers.MessageSerializer)
    @action(detail=True, methods=["post"])
    def kill(self, request: Request, name: str) -> Response:
        """Pull the kill switch: no entries until a person resets it."""
        why = read(serializers.WhySerializer(data=request.data))["why"]
        bot = self.get_object()
        with refusals():
            pulled = services.pull_kill_switch(bot=bot, reason=reason("MANUAL", why=why), user=acting_user(request))
        return said(f"The kill switch of {bot.name} is pulled." if pulled else "The kill switch was pulled already.")

    @extend_schema(request=None, responses=serializers.MessageSerializer)
    @action(detail=True, methods=["post"], url_path="reset-kill-switch")
    def reset_kill_switch(self, request: Request, name: str) -> Response:
        """Open the latch, by name."""
        bot = self.get_object()
        with refusals():
            opened = services.reset_kill_switch(bot=bot, user=acting_user(request))
        return said(f"The kill switch of {bot.name} is reset." if opened else "The kill switch was not pulled.")


class DecisionViewSet(viewsets.ReadOnlyModelViewSet[Decision]):
    """Decisions with outcome and reason, newest bar first."""

    queryset = Decision.objects.select_related("symbol").order_by("-bar_at", "symbol_id")
    serializer_class = serializers.DecisionSerializer
    filterset_fields = {
        "bot__name": ["exact"], "symbol": ["exact"], "symbol__code": ["exact"], "outcome": ["exact", "in"],
        "bar_at": ["exact", "gte", "lt"],
    }  # fmt: skip


class OrderViewSet(viewsets.ReadOnlyModelViewSet[Order]):
    """Orders, newest first."""

    queryset = Order.objects.select_related("symbol").order_by("-id")
    serializer_class = serializers.OrderSerializer
    filterset_fields = {
        "bot__name": ["exact"], "symbol__code": ["exact"], "state": ["exact", "in"], "purpose": ["exact"],
        "client_order_id": ["exact"],
    }  # fmt: skip


class FillViewSet(mixins.ListModelMixin, viewsets.GenericViewSet[Fill]):
    """Fills, newest first."""

    queryset = Fill.objects.select_related("symbol").order_by("-filled_at", "-id")
    serializer_class = serializers.FillSerializer
    filterset_fields = {"bot__name": ["exact"], "symbol__code": ["exact"], "filled_at": ["gte", "lt"]}


class PositionViewSet(viewsets.ReadOnlyModelViewSet[Position]):
    """Positions, newest first; `closed_at__isnull=true` for the open ones."""

    queryset = Position.objects.select_related("symbol").order_by("-id")
    serializer_class = serializers.PositionSerializer
    filterset_fields = {"bot__name": ["exact"], "symbol__code": ["exact"], "closed_at": ["isnull", "gte", "lt"]}


class EquityViewSet(mixins.ListModelMixin, viewsets.GenericViewSet[EquityPoint]):
    """Equity per bar, newest first."""

    queryset = EquityPoint.objects.order_by("-at")
    serializer_class = serializers.EquityPointSerializer
    filterset_fields = {"bot__name": ["exact"], "at": ["gte", "lt"]}


class RiskEventViewSet(mixins.ListModelMixin, viewsets.GenericViewSet[RiskEvent]):
    """Limits hit, kill switches pulled and reset, and by whom."""

    queryset = RiskEvent.objects.order_by("-id")
    serializer_class = serializers.RiskEventSerializer
    filterset_fields = {"bot__name": ["exact"], "kind": ["exact"]}
