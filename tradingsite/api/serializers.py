"""What the API shows of each row, and what it takes."""

from __future__ import annotations

from rest_framework import serializers

from coverage_app.models import Block, Symbol, UniverseRefresh
from ops_app.models import Alert, Event, Heartbeat
from trading_app.choices import DesiredState
from trading_app.models import Bot, Decision, EquityPoint, Fill, Order, Position, RiskEvent
from training_app.models import Activation, ActiveModel, ModelArtifact, RunSymbol, TrainingRun, TuningTrial


class BlockSerializer(serializers.ModelSerializer[Block]):
    symbol_code = serializers.CharField(source="symbol.code", read_only=True)

    class Meta:
        model = Block
        fields = [
            "id", "symbol", "symbol_code", "reason", "evidence", "permanent", "failures", "opened_at", "recheck_at",
            "closed_at", "close_reason",
        ]  # fmt: skip


class SymbolSerializer(serializers.ModelSerializer[Symbol]):
    """A symbol with its derived state; `states` in the context maps a symbol's id to it (one query for a page)."""

    state = serializers.SerializerMethodField()
    reason = serializers.SerializerMethodField()
    evidence = serializers.SerializerMethodField()
    recheck_at = serializers.SerializerMethodField()

    class Meta:
        model = Symbol
        fields = [
            "id", "code", "market", "market_type", "state", "reason", "evidence", "recheck_at", "in_universe",
            "universe_reason", "active", "listed_at", "delisted_at", "history_start", "history_days",
            "history_coverage", "last_candle_at", "next_evaluation_at", "last_evaluated_at", "evaluations",
        ]  # fmt: skip

    def _of(self, symbol: Symbol, name: str) -> str | None:
        state = self.context.get("states", {}).get(symbol.pk)
        value = getattr(state, name, None)
        return None if value is None else str(value)

    def get_state(self, symbol: Symbol) -> str | None:
        return self._of(symbol, "state")

    def get_reason(self, symbol: Symbol) -> str | None:
        return self._of(symbol, "reason")

    def get_evidence(self, symbol: Symbol) -> str | None:
        return self._of(symbol, "evidence")

    def get_recheck_at(self, symbol: Symbol) -> str | None:
        state = self.context.get("states", {}).get(symbol.pk)
        return state.recheck_at.isoformat() if state is not None and state.recheck_at is not None else None


class UniverseRefreshSerializer(serializers.ModelSerializer[UniverseRefresh]):
    class Meta:
        model = UniverseRefresh
        fields = "__all__"


class RunSymbolSerializer(serializers.ModelSerializer[RunSymbol]):
    symbol_code = serializers.CharField(source="symbol.code", read_only=True)

    class Meta:
        model = RunSymbol
        fields = ["symbol", "symbol_code", "open", "verdict", "reason"]


class TuningTrialSerializer(serializers.ModelSerializer[TuningTrial]):
    class Meta:
        model = TuningTrial
        fields = ["number", "attempt", "fencing_token", "state", "params", "value", "sharpe", "seconds"]


class RunSerializer(serializers.ModelSerializer[TrainingRun]):
    scope_key = serializers.CharField(source="scope.key", read_only=True)

    class Meta:
        model = TrainingRun
        fields = [
            "id", "scope_key", "run_no", "state", "trigger", "cause", "attempt", "max_attempts", "not_before",
            "progress", "stage", "data_start", "data_end", "data_hash", "error", "created_at", "started_at",
            "finished_at", "heartbeat_at",
        ]  # fmt: skip


class RunDetailSerializer(RunSerializer):
    run_symbols = RunSymbolSerializer(many=True, read_only=True)
    tuning_trials = TuningTrialSerializer(many=True, read_only=True)

    class Meta(RunSerializer.Meta):
        fields = [*RunSerializer.Meta.fields, "log", "run_symbols", "tuning_trials"]


class ArtifactSerializer(serializers.ModelSerializer[ModelArtifact]):
    scope_key = serializers.CharField(source="scope.key", read_only=True)

    class Meta:
        model = ModelArtifact
        fields = [
            "id", "scope_key", "version", "run", "size", "sha256", "training_mode", "symbol_encoding", "timeframe",
            "signal", "blend", "schema_hash", "label_spec", "label_hash", "library_versions", "threshold", "score",
            "metrics", "gates", "gates_passed", "panel_symbols", "data_start", "data_end", "data_hash", "retired_at",
            "retired_reason", "integrity_error", "created_at",
        ]  # fmt: skip


class ActiveModelSerializer(serializers.ModelSerializer[ActiveModel]):
    class Meta:
        model = ActiveModel
        fields = ["id", "slot", "artifact", "generation", "activated_at"]


class ActivationSerializer(serializers.ModelSerializer[Activation]):
    class Meta:
        model = Activation
        fields = [
            "id", "slot", "artifact", "previous_artifact", "kind", "state", "reason", "generation", "requested_by",
            "requested_at", "decided_at",
        ]  # fmt: skip


class BotSerializer(serializers.ModelSerializer[Bot]):
    class Meta:
        model = Bot
        fields = [
            "id", "name", "market", "account", "mode", "desired_state", "max_leverage", "max_correlated",
            "max_position", "max_positions", "cooldown_bars", "daily_loss_limit", "max_drawdown", "on_kill_switch",
            "volatility_target", "kill_switch_at", "kill_switch_reason", "peak_equity", "day", "day_start_equity",
            "daily_loss_hit", "last_bar_at", "loaded_generation", "loaded_at", "refused_generation", "reloads",
            "started_at",
        ]  # fmt: skip


class DecisionSerializer(serializers.ModelSerializer[Decision]):
    symbol_code = serializers.CharField(source="symbol.code", read_only=True)

    class Meta:
        model = Decision
        fields = [
            "id", "bot", "symbol", "symbol_code", "bar_at", "side", "probability", "artifact", "generation",
            "outcome", "reason", "price", "created_at",
        ]  # fmt: skip


class OrderSerializer(serializers.ModelSerializer[Order]):
    symbol_code = serializers.CharField(source="symbol.code", read_only=True)

    class Meta:
        model = Order
        fields = [
            "id", "bot", "symbol", "symbol_code", "position", "decision", "purpose", "side", "kind", "quantity",
            "filled", "average_price", "trigger_price", "reduce_only", "client_order_id", "venue_order_id", "state",
            "reason", "created_at", "sent_at", "finished_at",
        ]  # fmt: skip


class FillSerializer(serializers.ModelSerializer[Fill]):
    symbol_code = serializers.CharField(source="symbol.code", read_only=True)

    class Meta:
        model = Fill
        fields = [
            "id", "bot", "order", "position", "symbol", "symbol_code", "trade_id", "side", "quantity", "price", "fee",
            "filled_at",
        ]  # fmt: skip


class PositionSerializer(serializers.ModelSerializer[Position]):
    symbol_code = serializers.CharField(source="symbol.code", read_only=True)

    class Meta:
        model = Position
        fields = [
            "id", "bot", "symbol", "symbol_code", "side", "quantity", "entry_price", "stop_price", "target_price",
            "expires_at", "realised_pnl", "fees", "foreign", "opened_at", "closed_at", "close_reason",
        ]  # fmt: skip


class EquityPointSerializer(serializers.ModelSerializer[EquityPoint]):
    class Meta:
        model = EquityPoint
        fields = ["bot", "at", "equity", "cash", "exposure", "drawdown", "open_positions"]


class RiskEventSerializer(serializers.ModelSerializer[RiskEvent]):
    class Meta:
        model = RiskEvent
        fields = ["id", "bot", "kind", "evidence", "created_at", "user"]


class EventSerializer(serializers.ModelSerializer[Event]):
    class Meta:
        model = Event
        fields = ["id", "created_at", "recorded_at", "severity", "kind", "subject", "text", "user"]


class AlertSerializer(serializers.ModelSerializer[Alert]):
    class Meta:
        model = Alert
        fields = ["id", "created_at", "severity", "key", "text", "state", "attempts", "sent_at", "resolved_at"]


class HeartbeatSerializer(serializers.ModelSerializer[Heartbeat]):
    class Meta:
        model = Heartbeat
        fields = ["name", "kind", "beat_at", "ttl_seconds", "pid", "host", "detail"]


# --- what requests carry ----------------------------------------------------------------------------------------------


class LoginSerializer(serializers.Serializer[dict[str, str]]):
    username = serializers.CharField()
    password = serializers.CharField(style={"input_type": "password"})


class TokenSerializer(serializers.Serializer[dict[str, str]]):
    token = serializers.CharField()
    role = serializers.CharField()


class WhySerializer(serializers.Serializer[dict[str, str]]):
    why = serializers.CharField(max_length=200, help_text="The reason, kept with who and when.")


class OptionalWhySerializer(serializers.Serializer[dict[str, str]]):
    why = serializers.CharField(max_length=200, required=False, default="")


class DesiredStateSerializer(serializers.Serializer[dict[str, str]]):
    state = serializers.ChoiceField(choices=DesiredState.choices)


class MessageSerializer(serializers.Serializer[dict[str, str]]):
    """What an action did, in a sentence."""

    message = serializers.CharField()


class ProblemSerializer(serializers.Serializer[dict[str, object]]):
    """An error, as RFC 9457 wants it."""

    type = serializers.CharField()
    title = serializers.CharField()
    status = serializers.IntegerField()
    detail = serializers.CharField(help_text="What is wrong, and what to do.")
    errors = serializers.DictField(  # type: ignore[assignment]  # DRF's metaclass takes the field out of the class
        required=False, help_text="Each wrong field with its rule."
    )


class StatusSerializer(serializers.Serializer[dict[str, object]]):
    """The whole at a glance."""

    market = serializers.CharField()
    exchange = serializers.CharField()
    simulated = serializers.BooleanField()
    market_time = serializers.DateTimeField()
    real_time = serializers.DateTimeField()
    speed = serializers.FloatField()
    symbols = serializers.DictField(child=serializers.IntegerField(), help_text="Symbols per state.")
    blocks = serializers.DictField(child=serializers.IntegerField(), help_text="Open blocks per reason.")
    open_runs = RunSerializer(many=True)
    active_models = ActiveModelSerializer(many=True)
    bots = BotSerializer(many=True)
    processes = HeartbeatSerializer(many=True)
    open_alerts = serializers.IntegerField()
