"""The parts of a driver's work follow each other without a gap, and are read back from a log."""

import time

import pytest

from tuner.search import stages


@pytest.fixture(autouse=True)
def nothing_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test before these may have left parts that nobody reported."""
    monkeypatch.setattr(stages, "_begun", [])


def test_the_parts_in_a_log_have_their_names_and_leave_out_no_second(capsys: pytest.CaptureFixture[str]) -> None:
    before = time.time()
    stages.begin("data")
    time.sleep(0.05)
    with stages.reported():
        stages.begin("ray")
        print("what a library prints")
        time.sleep(0.02)
    after = time.time()
    (data, began, data_seconds), (ray, ray_began, ray_seconds) = stages.parse(capsys.readouterr().out)
    assert (data, ray) == ("data", "ray")
    assert data_seconds >= 0.05 and ray_seconds >= 0.02
    assert began == pytest.approx(before, abs=0.02) and ray_began == pytest.approx(began + data_seconds, abs=0.002)
    assert ray_began + ray_seconds == pytest.approx(after, abs=0.02)


def test_a_second_search_in_a_process_reports_its_own_parts_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("first", "second"):
        with stages.reported():
            stages.begin(name)
    log = capsys.readouterr().out
    assert len(log.splitlines()) == 2
    assert [name for name, *_ in stages.parse(log)] == ["second"]


def test_the_parts_of_a_search_that_fails_are_reported_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no Ray"), stages.reported():
        stages.begin("ray")
        raise ValueError("no Ray")
    assert [name for name, *_ in stages.parse(capsys.readouterr().out)] == ["ray"]


def test_a_log_without_the_line_has_no_parts() -> None:
    assert stages.parse("what a library prints\n") == []
