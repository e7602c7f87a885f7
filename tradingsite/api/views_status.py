"""Log-in, the whole at a glance, and the journal."""

from __future__ import annotations

from collections import Counter
from typing import Any

from django.conf import settings
from django.contrib.auth import authenticate
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, viewsets
from rest_framework.authtoken.models import Token
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.throttling import ScopedRateThrottle
from rest_framework.views import APIView

from coverage_app.models import Block
from ops_app import clock
from ops_app.models import Alert, Event, Heartbeat
from trading_app.models import Bot
from tradingsite.api import serializers
from tradingsite.permissions import VIEWER, role_of
from training_app import selectors as training
from training_app.models import ActiveModel


class TokenView(APIView):
    """Get a token, or give it back."""

    permission_classes = [AllowAny]
    throttle_classes = [ScopedRateThrottle]
    throttle_scope = "login"

    @extend_schema(request=serializers.LoginSerializer, responses=serializers.TokenSerializer)
    def post(self, request: Request) -> Response:
        form = serializers.LoginSerializer(data=request.data)
        form.is_valid(raise_exception=True)
        # Django's request, so that axes counts failures of the API and of the admin together
        user = authenticate(request._request, **form.validated_data)
        role = role_of(user) if user is not None else None
        if user is None or role is None:
            raise AuthenticationFailed("User name or password is wrong, or the user has no role. Ask an admin.")
        token, _ = Token.objects.get_or_create(user=user)
        return Response({"token": token.key, "role": role})

    @extend_schema(request=None, responses={204: None})
    def delete(self, request: Request) -> Response:
        if not request.user.is_authenticated:
            raise AuthenticationFailed("Send the token that shall be given back.")
        Token.objects.filter(user=request.user).delete()
        return Response(status=204)


class StatusView(APIView):
    """The whole at a glance."""

    required_role = VIEWER

    @extend_schema(responses=serializers.StatusSerializer)
    def get(self, request: Request) -> Response:
        states = training.symbol_states()
        blocks = Block.objects.open().filter(symbol__market=settings.EXCHANGE_MARKET)
        body: dict[str, Any] = {
            "market": settings.EXCHANGE_MARKET,
            "exchange": settings.EXCHANGE,
            "simulated": settings.EXCHANGE != "live",
            "market_time": clock.market_now(),
            "real_time": clock.real_now(),
            "speed": clock.speed(),
            "symbols": training.state_counts(states),
            "blocks": dict(Counter(blocks.values_list("reason", flat=True))),
            "open_runs": training.open_runs(),
            "active_models": ActiveModel.objects.order_by("slot"),
            "bots": Bot.objects.order_by("name"),
            "processes": Heartbeat.objects.order_by("name"),
            "open_alerts": Alert.objects.filter(resolved_at__isnull=True).count(),
        }
        return Response(serializers.StatusSerializer(body).data)


class EventViewSet(mixins.ListModelMixin, viewsets.GenericViewSet[Event]):
    """The journal, newest first."""

    queryset = Event.objects.order_by("-id")
    serializer_class = serializers.EventSerializer
    filterset_fields = {"kind": ["exact"], "subject": ["exact"], "severity": ["exact"], "created_at": ["gte", "lt"]}


class AlertViewSet(mixins.ListModelMixin, viewsets.GenericViewSet[Alert]):
    """Alerts, newest first."""

    queryset = Alert.objects.order_by("-id")
    serializer_class = serializers.AlertSerializer
    filterset_fields = {"severity": ["exact"], "state": ["exact"], "resolved_at": ["isnull"]}
