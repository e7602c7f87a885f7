from django.apps import AppConfig
from django.contrib.admin import apps as admin_apps


class TradingSiteConfig(AppConfig):
    name = "tradingsite"
    verbose_name = "Site"
    default = True

    def ready(self) -> None:
        from tradingsite import schedules  # noqa: F401 - importing it registers jobs


class TradingAdminConfig(admin_apps.AdminConfig):
    """Django's admin, with a site that lets roles in."""

    default = False
    default_site = "tradingsite.admin_site.TradingAdminSite"
