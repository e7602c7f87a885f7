"""Routes of `/api/v1/`."""

from django.urls import include, path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView
from rest_framework.routers import DefaultRouter

from tradingsite.api import views_coverage, views_status, views_trading, views_training, views_watches

app_name = "api"  # a namespace: the pages have actions of the same names
router = DefaultRouter()
router.include_format_suffixes = False  # there is one format: JSON
router.register("symbols", views_coverage.SymbolViewSet)
router.register("blocks", views_coverage.BlockViewSet)
router.register("universe-refreshes", views_coverage.UniverseRefreshViewSet)
router.register("runs", views_training.RunViewSet)
router.register("artifacts", views_training.ArtifactViewSet)
router.register("active-models", views_training.ActiveModelViewSet)
router.register("activations", views_training.ActivationViewSet)
router.register("watches", views_watches.WatchViewSet)
router.register("bots", views_trading.BotViewSet)
router.register("decisions", views_trading.DecisionViewSet)
router.register("orders", views_trading.OrderViewSet)
router.register("fills", views_trading.FillViewSet)
router.register("positions", views_trading.PositionViewSet)
router.register("equity", views_trading.EquityViewSet)
router.register("risk-events", views_trading.RiskEventViewSet)
router.register("events", views_status.EventViewSet)
router.register("alerts", views_status.AlertViewSet)

urlpatterns = [
    path("token/", views_status.TokenView.as_view(), name="token"),
    path("status/", views_status.StatusView.as_view(), name="status"),
    path("schema/", SpectacularAPIView.as_view(), name="schema"),
    path("docs/", SpectacularSwaggerSplitView.as_view(url_name="api:schema"), name="docs"),
    path("", include(router.urls)),
]
