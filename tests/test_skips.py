"""Where CI=true a skip must be on tests/expected_skips.txt."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

HERE = Path(__file__).parent
EXPECTED = "def test_data(data_dir): ..."
SURPRISE = "import pytest\ndef test_later(): pytest.skip('some other day')"


@pytest.fixture
def session(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """An empty test session with our conftest, on a machine of CI that has no data."""
    pytester.makeconftest((HERE / "conftest.py").read_text())
    (pytester.path / "expected_skips.txt").write_text((HERE / "expected_skips.txt").read_text())
    monkeypatch.setenv("CI", "true")
    monkeypatch.delenv("DFQLAB_DATA", raising=False)
    return pytester


def test_an_expected_skip_passes(session: pytest.Pytester) -> None:
    session.makepyfile(EXPECTED)
    result = session.runpytest()
    result.assert_outcomes(skipped=1)
    assert result.ret == 0


def test_a_surprise_skip_fails_the_run_and_is_named(session: pytest.Pytester) -> None:
    session.makepyfile(SURPRISE)
    result = session.runpytest()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*not on tests/expected_skips.txt*", "*test_later: some other day"])


@pytest.mark.parametrize(
    "source",
    [
        "import pytest\npytest.importorskip('no_such_module')",
        "import pytest\npytest.skip('not here', allow_module_level=True)",
        "import pytest\n@pytest.mark.skip(reason='not here')\ndef test_it(): ...",
    ],
    ids=["import", "module", "mark"],
)
def test_a_surprise_fails_the_run_however_it_skips(session: pytest.Pytester, source: str) -> None:
    session.makepyfile(source, test_fine="def test_fine(): ...")
    assert session.runpytest().ret == pytest.ExitCode.TESTS_FAILED


def test_a_surprise_outside_the_folder_of_the_list_fails_the_run(session: pytest.Pytester) -> None:
    (session.path / "tests").mkdir()
    for name in ("conftest.py", "expected_skips.txt"):
        (session.path / name).rename(session.path / "tests" / name)
    package = session.mkpydir("package")
    (package / "module.py").write_text('"""\n>>> 1 / 0  # doctest: +SKIP\n"""')
    result = session.runpytest("--doctest-modules", "tests", "package")
    result.assert_outcomes(skipped=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_at_home_any_skip_passes(session: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI")
    session.makepyfile(SURPRISE)
    assert session.runpytest().ret == 0


def test_data_that_is_named_but_missing_fails(session: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFQLAB_DATA", str(session.path / "nowhere"))
    session.makepyfile(EXPECTED)
    session.runpytest().assert_outcomes(errors=1)
