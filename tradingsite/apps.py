from django.apps import AppConfig


class TradingSiteConfig(AppConfig):
    name = "tradingsite"
    verbose_name = "Site"
