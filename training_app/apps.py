from django.apps import AppConfig


class TrainingConfig(AppConfig):
    name = "training_app"
    verbose_name = "Training"

    def ready(self) -> None:
        from training_app import schedules  # noqa: F401 - importing it registers the jobs and the sweeper
