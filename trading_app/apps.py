from django.apps import AppConfig


class TradingConfig(AppConfig):
    name = "trading_app"
    verbose_name = "Trading"

    def ready(self) -> None:
        from coverage_app.services.universe import register_holder
        from trading_app.selectors import live_records, open_position_codes
        from training_app.watching import register_live

        register_holder("open positions", open_position_codes)
        register_live(live_records)
