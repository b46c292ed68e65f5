"""A user's mistake is one line on stderr and exit code 2; a bug keeps its traceback."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ganbert.errors import EXIT_USER_ERROR, ConfigError, GanbertError, one_line_errors


def make_error() -> GanbertError:
    return ConfigError("run.yaml", expected="a number", found="'x'", remedy="mend 'seed'")


def test_line_says_where_expected_found_and_what_to_do() -> None:
    assert str(make_error()) == "run.yaml: expected a number, found 'x'; mend 'seed'"


@given(st.text(), st.text(), st.text(), st.text())
def test_message_is_always_one_line(where: str, expected: str, found: str, remedy: str) -> None:
    message = str(GanbertError(where, expected=expected, found=found, remedy=remedy))
    assert len(message.splitlines()) == 1


def test_user_error_becomes_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving, one_line_errors():
        raise make_error()
    assert leaving.value.code == EXIT_USER_ERROR == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "ganbert: error: run.yaml: expected a number, found 'x'; mend 'seed'\n"


def test_rank_is_named_under_a_launcher(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(SystemExit), one_line_errors():
        raise make_error()
    assert capsys.readouterr().err.startswith("ganbert: rank 3: error: ")


def test_bug_is_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError), one_line_errors():
        raise ZeroDivisionError
