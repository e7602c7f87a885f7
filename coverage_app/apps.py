from django.apps import AppConfig


class CoverageConfig(AppConfig):
    name = "coverage_app"
    verbose_name = "Coverage"
