from django.apps import AppConfig


class TradingConfig(AppConfig):
    name = "trading_app"
    verbose_name = "Trading"

    def ready(self) -> None:
        from coverage_app.services.universe import register_holder
        from trading_app.selectors import open_position_codes

        register_holder("open positions", open_position_codes)
