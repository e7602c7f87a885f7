from django.apps import AppConfig


class OperationsConfig(AppConfig):
    name = "ops_app"
    verbose_name = "Operations"

    def ready(self) -> None:
        from ops_app import checks, schedules  # noqa: F401 - importing them registers checks and jobs
