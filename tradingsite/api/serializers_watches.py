"""What the API shows of the looks at active models."""

from __future__ import annotations

from rest_framework import serializers

from training_app.models import ModelWatch


class WatchSerializer(serializers.ModelSerializer[ModelWatch]):
    """A look at an active model: are its features still as in training, and do its trades keep its promise?"""

    scope_key = serializers.CharField(source="artifact.scope.key", read_only=True)

    class Meta:
        model = ModelWatch
        fields = [
            "id", "scope_key", "artifact", "at", "since", "verdict", "text", "asks", "samples", "drifted", "psi_max",
            "trades", "wins", "promised_precision", "guard",
        ]  # fmt: skip


class FeatureDriftSerializer(serializers.Serializer[dict[str, object]]):
    """A feature of a look; without a `bound` the training does not say what is usual, so it is not judged."""

    feature = serializers.CharField()
    psi = serializers.FloatField()
    bound = serializers.FloatField(allow_null=True)
    missing = serializers.FloatField()
    missing_before = serializers.FloatField()
    drifted = serializers.BooleanField()


class WatchDetailSerializer(WatchSerializer):
    features = FeatureDriftSerializer(many=True, read_only=True)

    class Meta(WatchSerializer.Meta):
        fields = [*WatchSerializer.Meta.fields, "features"]
