"""environment.yml and pyproject.toml ask for the same versions."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())
(BY_PIP,) = (need["pip"] for need in ENVIRONMENT["dependencies"] if isinstance(need, dict))
EXTRAS = PROJECT["optional-dependencies"]


def test_conda_brings_python_and_pip_and_nothing_else() -> None:
    by_conda = [need for need in ENVIRONMENT["dependencies"] if isinstance(need, str)]
    assert by_conda == [f"python{PROJECT['requires-python']}", "pip"]


def test_pip_is_asked_for_what_pyproject_asks_for() -> None:
    assert sorted(BY_PIP) == sorted([*PROJECT["dependencies"], *(need for needs in EXTRAS.values() for need in needs)])


@pytest.mark.parametrize("name", ["torch", "torchvision", "jupyterlab", "triton", "ipywidgets", "nbval", "playwright"])
def test_the_fixed_packages_stand_in_the_environment(name: str) -> None:
    assert any(re.match(rf"{name}\b", need) for need in BY_PIP)


def test_every_requirement_has_an_upper_bound() -> None:
    needs = [*PROJECT["dependencies"], *(need for needs in PROJECT["optional-dependencies"].values() for need in needs)]
    assert [need for need in needs if not re.match(r"[\w-]+(\[\w+\])?>=[\d.]+,<[\d.]+(;|$)", need)] == []


def test_every_line_says_why_it_is_there() -> None:
    lines = (ROOT / "environment.yml").read_text().split("pip:\n")[1].splitlines()
    assert [line for line in lines if line.strip().startswith("-") and "  # " not in line] == []
