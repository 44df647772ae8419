"""A run of the benchmark: rows on disk one by one, nothing measured twice, nothing lost."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dfqlab_kernels import backend, channel_stats
from dfqlab_kernels.bench import __main__ as command
from dfqlab_kernels.bench import table
from dfqlab_kernels.bench.cases import Bench, Call, Case
from dfqlab_kernels.bench.machine import Machine, code_digest, results_folder, this_machine
from dfqlab_kernels.bench.record import SCHEMA, Record
from dfqlab_kernels.bench.session import Session
from dfqlab_kernels.bench.timing import Measured, Stopwatch, summary

MACHINE = Machine("cpu", "Some CPU (R), 2 threads", {"threads": 2}, {"python": "3", "torch": "2", "triton": "3"}, "abc")
LABELS = ("first", "second")


def fails(x: Tensor) -> Tensor:
    raise RuntimeError("cannot read /some/where/file")


def case(label: str) -> Case:
    def build(device: str) -> dict[str, Call]:
        x = torch.randn(4, 3, 5, 5, device=device, generator=torch.Generator(device).manual_seed(0)).requires_grad_()
        one = torch.ones(3, device=device)
        stats = Call(channel_stats, [x], [one, one])
        return {"eager": stats, "torch": Call(fails, [x], [one]), "ours": stats}

    return Case(label, "float32", "NCHW", 300, (1200, 3600), (5, 8), build, reads_only=True)


BENCHES = {"channel_stats": Bench(("channel_stats",), lambda gpu: [case(label) for label in LABELS])}


def session(folder: Path, machine: Machine = MACHINE, said: list[str] | None = None) -> Session:
    stopwatch = Stopwatch("cpu", rounds=3, fewest=2, seconds=0.0, flush=4096)
    found = Session(machine, Record(folder, machine), stopwatch, say=(said if said is not None else []).append)
    found.measure_rates(1 << 16)
    return found


def rows(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "some-cpu-r-2-threads.json").read_text())["rows"]


def test_a_results_file_says_where_when_and_with_what(tmp_path: Path) -> None:
    session(tmp_path).run(BENCHES, named=False)
    content = json.loads((tmp_path / "some-cpu-r-2-threads.json").read_text())
    assert content["schema"] == SCHEMA
    assert content["device"] == MACHINE.as_dict()
    assert {"copy", "read", "date"} <= content["rates"][0].keys()
    assert [(r["label"], r["direction"]) for r in content["rows"]] == [
        (k, d) for k in LABELS for d in ("forward", "both")
    ]
    for row, floor in zip(content["rows"], (1200, 3600, 1200, 3600), strict=True):
        assert row["floor_bytes"] == floor
        assert row["floor_rate"] == ("read" if row["direction"] == "forward" else "copy")
        assert row["rate"] == content["rates"][0][row["floor_rate"]]
        assert row["versions"] == MACHINE.versions
        assert row["code"] == "abc"
        assert row["counted_bytes"]["ours"] >= floor
        assert row["times"].keys() == {"eager", "ours"}
        for time in row["times"].values():
            assert 0 < time["low"] <= time["median"] <= time["high"]


def test_a_competitor_that_fails_is_named_and_the_others_are_measured(tmp_path: Path) -> None:
    said: list[str] = []
    session(tmp_path, said=said).run(BENCHES, named=False)
    assert rows(tmp_path)[0]["failed"] == {"torch": "RuntimeError: cannot read ..."}
    assert sum("fails" in line for line in said) == 4


def test_lines_are_shorter_than_a_hundred_columns(tmp_path: Path) -> None:
    said: list[str] = []
    session(tmp_path, said=said).run(BENCHES, named=False)
    widest = ["eager", "function", "torch", "compile"]
    said.append(table.header("statistics_loss_mobilenet_v2", widest))
    slow = {who: {"median": 98.7654321} for who in table.COMPETITORS} | {"ours": {"median": 9.87654}}
    row = rows(tmp_path)[0] | {"label": "per channel " + 9 * "256x", "dtype": "bfloat16", "direction": "both"}
    said += [
        table.line(row | {"times": slow, "failed": {}}, widest),
        table.line(row | {"times": {}, "failed": {"ours": 99 * "x"}}, widest),
    ]
    assert max(len(table.columns(row)) for row in rows(tmp_path)) <= len(widest)
    assert max(len(line) for text in said for line in text.splitlines()) < 100


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    session(tmp_path).run(BENCHES, named=False)
    before, said = rows(tmp_path), []
    session(tmp_path, said=said).run(BENCHES, named=False)
    assert rows(tmp_path) == before
    assert said[1:] == ["channel_stats: nothing new since it was measured"]


def test_what_is_asked_for_by_name_is_measured_anew(tmp_path: Path) -> None:
    session(tmp_path).run(BENCHES, named=False)
    before = rows(tmp_path)
    session(tmp_path).run(BENCHES, named=True)
    assert len(rows(tmp_path)) == len(before)
    assert all(a["times"] != b["times"] for a, b in zip(rows(tmp_path), before, strict=True))


@pytest.mark.parametrize("named", [True, False])
def test_an_interrupted_run_is_taken_up_where_it_stopped(tmp_path: Path, named: bool) -> None:
    interrupted = session(tmp_path)

    def say(line: str) -> None:
        if line.startswith("first") and "f+b" in line:
            raise KeyboardInterrupt

    interrupted.say = say
    with pytest.raises(KeyboardInterrupt):
        interrupted.run(BENCHES, named=named)
    before = rows(tmp_path)
    assert [row["label"] for row in before] == ["first", "first"]
    session(tmp_path).run(BENCHES, named=named)
    assert rows(tmp_path)[:2] == before
    assert [row["label"] for row in rows(tmp_path)] == ["first", "first", "second", "second"]


@pytest.mark.parametrize("change", [{"code": "def"}, {"versions": MACHINE.versions | {"torch": "3"}}])
def test_numbers_of_other_code_or_versions_are_replaced(tmp_path: Path, change: dict[str, Any]) -> None:
    session(tmp_path).run(BENCHES, named=False)
    session(tmp_path, replace(MACHINE, **change)).run(BENCHES, named=False)
    assert len(rows(tmp_path)) == 4
    assert all(row[name] == value for row in rows(tmp_path) for name, value in change.items())


def test_a_case_that_is_gone_takes_its_rows_along(tmp_path: Path) -> None:
    session(tmp_path).run(BENCHES, named=False)
    fewer = {"channel_stats": Bench(("channel_stats",), lambda gpu: [case("second"), case("third")])}
    session(tmp_path).run(fewer, named=False)
    assert [row["label"] for row in rows(tmp_path)] == ["second", "second", "third", "third"]


def test_a_cpu_never_launches_triton_whatever_was_chosen(tmp_path: Path) -> None:
    with backend("triton"):
        session(tmp_path).run(BENCHES, named=False)
    assert all("ours" in row["times"] for row in rows(tmp_path))


def test_competitors_take_turns_within_each_round() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}  # type: ignore[misc]
    measured = Stopwatch("cpu", rounds=3, fewest=3, seconds=9, flush=0).measure(calls)
    assert "".join(order) == "aabb" + 3 * "ab"
    assert measured.times["a"]["rounds"] == 3
    assert Measured().times == {}


def test_a_slow_competitor_ends_the_rounds_early_but_not_before_the_fewest() -> None:
    measured = Stopwatch("cpu", rounds=50, fewest=4, seconds=0.0, flush=0).measure({"a": lambda: None})
    assert measured.times["a"]["rounds"] == 4


def test_one_time_is_its_own_median_and_quantiles() -> None:
    assert summary([2.0]) == {"median": 2.0, "low": 2.0, "high": 2.0, "rounds": 1}


def test_the_share_of_the_floor_is_that_of_the_bytes_at_the_measured_rate() -> None:
    row = {"floor_bytes": 100, "rate": 50.0, "times": {"ours": {"median": 4.0}, "eager": {"median": 12.0}}}
    assert table.floor_share(row) == 0.5
    assert table.ratio(row, "eager") == 3.0
    assert table.ratio(row, "compile") is None


def test_this_machine_has_a_name_that_a_file_can_have(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DFQLAB_BENCH_DEVICE", "cpu")
    machine = this_machine()
    assert machine.slug == machine.slug.lower().replace(" ", "-")
    assert machine.kind == "cpu"
    assert machine.code == code_digest()
    monkeypatch.setenv("DFQLAB_BENCH_RESULTS", str(tmp_path))
    assert results_folder() == tmp_path


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(SystemExit, match="no op 'softmax' to measure; choose among fake_quantize"):
        command.main(["softmax"])


def test_each_call_is_timed_right_after_some_of_its_own() -> None:
    made: list[str] = []
    calls = {name: lambda name=name: made.append(name) for name in "ab"}
    measured = Stopwatch("cpu", rounds=2, fewest=2, seconds=9, flush=0, run_up=2).measure(calls)
    assert "".join(made) == "aabb" + 2 * "aaabbb"  # twice to warm up; then in each round two untimed ones and a timed
    assert measured.times.keys() == {"a", "b"}
