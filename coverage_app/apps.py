from django.apps import AppConfig


class CoverageConfig(AppConfig):
    name = "coverage_app"
    verbose_name = "Coverage"

    def ready(self) -> None:
        from coverage_app import checks, schedules  # noqa: F401 - registers the checks and the jobs
