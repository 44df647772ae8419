"""The benchmark page says what the results files say."""

import pytest

from benchmarks import render
from benchmarks.image_sets import settings_of
from benchmarks.paper_pages import command_of, executed, outdated
from benchmarks.zoo import ZOOS


def test_the_page_is_the_one_that_the_results_files_make() -> None:
    assert (render.FOLDER / "README.md").read_text() == render.page()


def test_the_readme_says_what_the_results_files_say() -> None:
    readme = (render.FOLDER.parent / "README.md").read_text()
    assert render.with_summary(readme) == readme


def test_a_table_without_a_results_file_says_not_measured(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "FOLDER", tmp_path)
    assert render.page().count("not measured") == 5 + sum(len(ZOOS) * len(page.sizes) for page in render.PAPERS)


def test_a_table_of_recipes_as_they_were_says_so() -> None:
    recipes = {"mixmix": settings_of("mixmix", {"steps": 7}), "zeroq": settings_of("zeroq", {})}
    assert outdated({"recipes": recipes}) == ""
    now, recipes["mixmix"]["alignment"] = recipes["mixmix"]["alignment"], 0.25
    said = f"alignment of mixmix was 0.25, and is {now}"
    assert outdated({"recipes": recipes}) == f" **Of recipes as they were: {said}.**"


def test_a_table_of_networks_that_torch_executed_says_so() -> None:
    assert executed({}) == ""
    assert "weights of 8 bits were executed by torch" in executed({"eight_bits_by_torch": True})


def test_every_table_that_waits_for_a_gpu_has_a_line_in_its_tick_list() -> None:
    text = (render.FOLDER.parent / "kernels" / "GPU.md").read_text()
    for page in render.PAPERS:
        for zoo in ZOOS if "full" in page.sizes else ():
            assert f"] `{command_of(page.paper, page.table, zoo, 'full')}` — " in text
