"""What a report quotes of its own estimate is what the results files say."""

import json
import math

import pytest

from benchmarks import render, trust_page


def test_reports_quote_the_results_files() -> None:
    assert json.loads(trust_page.BELIEFS.read_text()) == trust_page.beliefs(render.FOLDER / "results")


def test_a_rank_correlation_has_the_interval_of_bonett_and_wright() -> None:
    value, low, high = trust_page.spearman([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 6, 5])
    assert value == pytest.approx(1 - 6 * 2 / (6 * 35))
    half = 1.959963984540054 * math.sqrt((1 + value**2 / 2) / 3)
    assert (low, high) == pytest.approx((math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half)))


def test_a_judge_that_says_the_same_of_all_ranks_nothing() -> None:
    rows = [{"judges": {"noise": {"agreement": 0.5}}, "accuracy": {"value": share}} for share in (0.1, 0.2, 0.3, 0.4)]
    assert trust_page._correlation(rows, "noise", "agreement") is None
