from django.apps import AppConfig


class TradingConfig(AppConfig):
    name = "trading_app"
    verbose_name = "Trading"
