"""The benchmark page says what the results files say."""

import pytest

from benchmarks import render


def test_the_page_is_the_one_that_the_results_files_make() -> None:
    assert (render.FOLDER / "README.md").read_text() == render.page()


def test_the_readme_says_what_the_results_files_say() -> None:
    readme = (render.FOLDER.parent / "README.md").read_text()
    assert render.with_summary(readme) == readme


def test_a_table_without_a_results_file_says_not_measured(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "FOLDER", tmp_path)
    assert render.page().count("not measured") == 2
