"""Where everything is found. Every path but /healthz needs a log-in (I22); a test walks them all."""

from django.contrib import admin
from django.urls import include, path

from tradingsite import health, views

handler404 = "tradingsite.views.not_found"
urlpatterns = [
    path("", views.dashboard, name="dashboard"),
    path("equity.json", views.equity_data, name="equity-data"),
    path("symbols/", views.symbols, name="symbols"),
    path("symbols/<int:pk>/", views.symbol, name="symbol"),
    path("symbols/<int:pk>/candles.json", views.symbol_data, name="symbol-data"),
    path("symbols/<int:pk>/unblock", views.symbol_unblock, name="symbol-unblock"),
    path("symbols/<int:pk>/block", views.symbol_block, name="symbol-block"),
    path("symbols/<int:pk>/evaluate", views.symbol_evaluate, name="symbol-evaluate"),
    path("bots/<slug:name>/state", views.bot_state, name="bot-state"),
    path("bots/<slug:name>/kill", views.bot_kill, name="bot-kill"),
    path("bots/<slug:name>/reset", views.bot_reset, name="bot-reset"),
    path("train", views.train, name="train"),
    path("roll-back", views.roll_back, name="roll-back"),
    path("admin/", admin.site.urls),
    path("api/v1/", include("tradingsite.api.urls")),
    path("healthz", health.healthz, name="healthz"),
    path("readyz", health.readyz, name="readyz"),
    path("metrics", health.metrics, name="metrics"),
]
