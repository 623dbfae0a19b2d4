import json
from pathlib import Path

from ray_sassl.train.metrics import MetricsLog, TrackingConfig

SILENT = TrackingConfig(tensorboard=False)


def _lines(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def _log(run_dir: Path | str, steps: range, resume_step: int = 0, config: TrackingConfig = SILENT) -> None:
    log = MetricsLog(str(run_dir), config, {}, resume_step)
    for step in steps:
        log.log(step, {"loss": 1 / step})
    log.close()


def test_every_logged_step_is_a_line_of_json(tmp_path):
    _log(tmp_path, range(1, 4))
    assert _lines(tmp_path) == [{"step": step, "loss": 1 / step} for step in range(1, 4)]


def test_lines_after_the_step_that_a_run_resumes_from_are_dropped(tmp_path):
    _log(tmp_path, range(1, 8))
    _log(tmp_path, range(5, 7), resume_step=4)
    assert [line["step"] for line in _lines(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_run_that_starts_over_starts_its_record_over(tmp_path):
    _log(tmp_path, range(1, 8))
    _log(tmp_path, range(1, 3))
    assert [line["step"] for line in _lines(tmp_path)] == [1, 2]


def test_a_line_that_was_torn_by_a_power_cut_is_dropped(tmp_path):
    _log(tmp_path, range(1, 4))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    _log(tmp_path, range(5, 6), resume_step=4)
    assert [line["step"] for line in _lines(tmp_path)] == [1, 2, 3, 5]


def test_metrics_are_readable_during_the_run(tmp_path):
    log = MetricsLog(str(tmp_path), SILENT, {})
    log.log(1, {"loss": 2.0})
    assert _lines(tmp_path) == [{"step": 1, "loss": 2.0}]
    log.close()


def test_the_last_value_of_every_metric_is_kept(tmp_path):
    log = MetricsLog(str(tmp_path), SILENT, {})
    log.log(1, {"loss": 2.0, "knn_top1": 0.1})
    log.log(2, {"loss": 1.0})
    log.close()
    assert log.last == {"loss": 1.0, "knn_top1": 0.1}


def test_a_run_directory_may_be_a_file_uri(tmp_path):
    _log(tmp_path.as_uri(), range(1, 6))
    _log(tmp_path.as_uri(), range(4, 5), resume_step=3)
    assert [line["step"] for line in _lines(tmp_path)] == [1, 2, 3, 4]


def test_tensorboard_gets_event_files(tmp_path):
    _log(tmp_path, range(1, 3), config=TrackingConfig())
    assert [path.name.split(".")[0] for path in (tmp_path / "tensorboard").iterdir()] == ["events"]
