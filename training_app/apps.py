from django.apps import AppConfig


class TrainingConfig(AppConfig):
    name = "training_app"
    verbose_name = "Training"

    def ready(self) -> None:
        from training_app import checks, schedules  # noqa: F401 - importing them registers checks, jobs and the sweeper
