"""metrics.jsonl: what is appended is read, and a resumed run finds no trace of what it will do again."""

import json
from pathlib import Path

import pytest

from cifarscale.errors import CifarscaleError
from cifarscale.tracking.metrics import MetricsLog, read_metrics


def filled(path: Path) -> MetricsLog:
    """Lines of steps 1 to 5; of step 4 two, as when an evaluation is due."""
    log = MetricsLog(path)
    for step in (1, 2, 3, 4, 4, 5):
        log.log(step, {"loss": step / 3})
    return log


def steps(path: Path) -> list[int]:
    return [line["step"] for line in read_metrics(path)]


def test_what_is_appended_is_read_to_the_last_bit(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    values = {"loss": 0.1 + 0.2, "images": 7, "tiny": 5e-324}
    log.log(3, values)
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 3, **values}]


def test_each_line_is_one_json_object_that_starts_with_its_step(tmp_path: Path) -> None:
    filled(tmp_path / "metrics.jsonl")
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        assert next(iter(json.loads(line))) == "step"


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_log_goes_on_where_another_one_ended(tmp_path: Path) -> None:
    filled(tmp_path / "metrics.jsonl")
    MetricsLog(tmp_path / "metrics.jsonl").log(6, {})
    assert steps(tmp_path / "metrics.jsonl") == [1, 2, 3, 4, 4, 5, 6]


@pytest.mark.parametrize(("step", "kept"), [(0, []), (3, [1, 2, 3]), (4, [1, 2, 3, 4, 4]), (9, [1, 2, 3, 4, 4, 5])])
def test_lines_of_later_steps_are_forgotten(step: int, kept: list[int], tmp_path: Path) -> None:
    log = filled(tmp_path / "metrics.jsonl")
    before = read_metrics(tmp_path / "metrics.jsonl")
    log.started(step)
    assert read_metrics(tmp_path / "metrics.jsonl") == before[: len(kept)]
    assert steps(tmp_path / "metrics.jsonl") == kept


def test_forgetting_makes_no_file(tmp_path: Path) -> None:
    MetricsLog(tmp_path / "metrics.jsonl").started(0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", range(1, 30, 4))
def test_a_last_line_that_was_cut_short_is_left_out_and_then_forgotten(size: int, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = filled(path)
    path.write_bytes(path.read_bytes()[:-size])
    assert steps(path) == [1, 2, 3, 4, 4]
    log.started(4)
    log.log(5, {"loss": 5 / 3})
    assert steps(path) == [1, 2, 3, 4, 4, 5]


def test_a_value_that_json_does_not_know_is_refused_and_nothing_written(tmp_path: Path) -> None:
    log = filled(tmp_path / "metrics.jsonl")
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        log.log(6, {"loss": float("nan")})
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_folder_that_is_gone_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(CifarscaleError, match=r"cannot write .*metrics\.jsonl: No such file") as caught:
        MetricsLog(tmp_path / "gone" / "metrics.jsonl").log(1, {})
    assert "\n" not in str(caught.value)
