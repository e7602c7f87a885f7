from django.apps import AppConfig


class OperationsConfig(AppConfig):
    name = "ops_app"
    verbose_name = "Operations"
