"""Rules for commands, models and the admin that a reviewer would otherwise have to remember."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from django.apps import apps
from django.contrib import admin
from django.core.management import call_command, load_command_class

from tests.conventions import walker

#: "app.Model" -> why a person has no use for its page.
NOT_IN_ADMIN: dict[str, str] = {}


def commands() -> list[tuple[str, str]]:
    """Return (app, name) of every management command of the project."""
    return [
        (path.relative_to(walker.ROOT).parts[0], path.stem)
        for path in walker.package_files(*walker.APPS)
        if path.parent.name == "commands" and not path.stem.startswith("_")
    ]


def test_the_project_has_commands() -> None:
    assert len(commands()) > 5


@pytest.mark.parametrize("app, name", commands())
def test_a_command_says_what_it_does_and_explains_every_option(app: str, name: str) -> None:
    command = load_command_class(app, name)
    assert command.help.strip(), f"{name} has no help text"
    parser = command.create_parser("manage.py", name)
    silent = [action.dest for action in parser._actions if not action.help]
    assert silent == [], f"options of {name} without help"
    with pytest.raises(SystemExit) as ended:
        call_command(command, "--help", stdout=io.StringIO())
    assert ended.value.code == 0


@pytest.mark.parametrize("app, name", commands())
def test_a_command_is_tested(app: str, name: str) -> None:
    here = Path(__file__)
    mentions = [
        path
        for path in walker.project_files()
        if path.is_relative_to(walker.ROOT / "tests")
        and path.suffix == ".py"
        and path != here
        and any(form in path.read_text() for form in (f'"{name}"', f"commands.{name} ", f"commands.{name}\n"))
    ]
    assert mentions, f"no test calls `manage.py {name}`"


def test_every_model_has_an_admin_page() -> None:
    models = [model for app in apps.get_app_configs() if app.name in walker.APPS for model in app.get_models()]
    assert models
    missing = [
        model._meta.label
        for model in models
        if not admin.site.is_registered(model)
        and model._meta.label not in NOT_IN_ADMIN
        and not hasattr(model, "instance_type")  # django-simple-history's own tables are shown on the model's page
    ]
    assert missing == []
    assert [label for label in NOT_IN_ADMIN if admin.site.is_registered(apps.get_model(label))] == []


def test_every_model_says_what_a_row_is() -> None:
    for app in apps.get_app_configs():
        if app.name not in walker.APPS:
            continue
        for model in app.get_models():
            if hasattr(model, "instance_type"):
                continue
            assert "__str__" in vars(model), f"{model._meta.label} has no __str__"
            assert not (model.__doc__ or "").startswith(f"{model.__name__}("), f"{model._meta.label} has no docstring"
