"""The loop on a real network and tiny data, and its arithmetic on a network of one layer."""

import itertools
import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ray_sassl.nn.method import Method, StepOutput
from ray_sassl.plugins import load_plugin
from ray_sassl.process.errors import UsageError
from ray_sassl.train import loop, saving
from ray_sassl.train.checkpoint import Checkpoint, latest_checkpoint, read_checkpoint, write_checkpoint
from ray_sassl.train.checkpoint_folder import list_checkpoints
from ray_sassl.train.config import OptimConfig, TrainConfig, micro_batch
from ray_sassl.train.context import LocalContext
from ray_sassl.train.divergence import DivergedError
from ray_sassl.train.loop import Job, num_evaluations, train
from ray_sassl.train.optim import load_optimizer
from ray_sassl.train.prefetch import to_device
from ray_sassl.types import Arrays, Outcome

NUM_STEPS = 6
SGD = OptimConfig(name="sgd", base_lr=0.1, lr_scaling="none", momentum=0.0, weight_decay=0.0)


class Linear(Method):
    """A method of three weights, whose loss is a mean over images; it notes what it was given."""

    backbone: nn.Linear

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(3, 1, bias=False)
        nn.init.ones_(self.backbone.weight)
        self.noted: list[Any] = []

    def forward(self, views: Sequence[Tensor], generator: torch.Generator, sample_id: Tensor | None = None) -> StepOutput:
        autocast = torch.is_autocast_enabled("cpu")
        self.noted.append((views[0].is_contiguous(memory_format=torch.channels_last), autocast, generator.initial_seed(), torch.rand(())))
        z = self.backbone(views[0].mean((2, 3)))  # (B, 1)
        return StepOutput(z.square().mean(), torch.cat([z, -z], dim=1).detach(), chance_loss=1.0)


def _batches(num_rows: int, batch_size: int, epochs: int = 1) -> Iterator[Arrays]:
    pixels = np.random.default_rng(0).integers(0, 256, (num_rows, 4, 4, 3), dtype=np.uint8)
    ids = np.tile(np.arange(num_rows), epochs)
    epoch = np.repeat(np.arange(epochs), num_rows)
    for first in range(0, len(ids) - batch_size + 1, batch_size):
        rows = slice(first, first + batch_size)
        yield {"view_0": pixels[ids[rows]], "view_1": pixels[ids[rows]], "sample_id": ids[rows], "epoch": epoch[rows]}


def _train(
    run_dir: Path,
    optim: OptimConfig = SGD,
    *,
    num_rows: int = 12,
    method: Linear | None = None,
    context: LocalContext | None = None,
    resume: Checkpoint | None = None,
    **config: Any,
) -> tuple[Linear, Outcome]:
    settings = TrainConfig(**{"epochs": 1, "global_batch": 4, "log_every": 1, "pixel_std": (1, 1, 1), **config})
    method = method or Linear()
    batches = _batches(num_rows, settings.global_batch // settings.accumulate, math.ceil(settings.epochs))
    return method, train(Job(method, batches, settings, optim, num_rows, 0, str(run_dir), "", context or LocalContext(), resume))


@pytest.fixture(scope="module", params=["simclr", "moco", "byol", "swav", "dino"])
def whole(request, tiny_config, run_here, tmp_path_factory) -> Any:
    """A config whose views are stylized, and the folder and outcome of its run without a stop."""
    config = tiny_config(request.param, "stylize=color_statistics", "sassl.views=all")
    folder = tmp_path_factory.mktemp(f"whole_{request.param}")
    return config, folder, run_here(config, folder)


@pytest.mark.parametrize("stop_at_step", range(1, NUM_STEPS))
def test_a_stopped_and_resumed_run_equals_one_that_was_not_stopped(whole, run_here, tmp_path, assert_same_checkpoints, stop_at_step):
    config, folder, run = whole
    stopped = run_here(config, tmp_path, LocalContext(stop_at_step=stop_at_step))
    assert (stopped.outcome.status, stopped.outcome.step) == ("interrupted", stop_at_step)
    resumed = run_here(config, tmp_path)
    assert (resumed.outcome.status, resumed.outcome.step) == ("finished", NUM_STEPS)
    assert_same_checkpoints(latest_checkpoint(str(tmp_path)), latest_checkpoint(str(folder)))
    assert stopped.taken + resumed.taken == run.taken
    assert stopped.losses + resumed.losses == run.losses


def test_a_run_that_is_stopped_at_every_step_equals_one_that_was_not_stopped(whole, run_here, tmp_path, assert_same_checkpoints):
    config, folder, run = whole
    parts = [run_here(config, tmp_path, LocalContext(stop_at_step=step)) for step in range(1, NUM_STEPS + 1)]
    assert_same_checkpoints(latest_checkpoint(str(tmp_path)), latest_checkpoint(str(folder)))
    assert [key for part in parts for key in part.taken] == run.taken
    logged = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert logged == list(range(1, NUM_STEPS + 1))


def test_a_run_resumed_from_an_older_checkpoint_equals_one_that_was_not_stopped(whole, run_here, tmp_path, assert_same_checkpoints):
    config, folder, _ = whole
    every_two = config.model_copy(update={"train": config.train.model_copy(update={"checkpoint_every": 2, "keep_checkpoints": 3})})
    run_here(every_two, tmp_path)
    newest = Path(list_checkpoints(str(tmp_path))[-1][1])
    (newest / "state.pt").write_bytes(b"damaged")
    resumed = run_here(every_two, tmp_path)
    assert len(resumed.losses) == 2
    assert_same_checkpoints(latest_checkpoint(str(tmp_path)), latest_checkpoint(str(folder)))


def test_a_run_sees_every_sample_once_an_epoch_in_the_order_of_the_plan(whole):
    _, _, run = whole
    seen = Counter(run.taken)
    assert set(seen.values()) == {1}
    assert sum(epoch == 0 for epoch, _ in seen) == 44
    assert sum(epoch == 1 for epoch, _ in seen) == 44


@pytest.mark.parametrize("method", ["swav", "dino"])
def test_small_views_reach_the_method_in_their_order_and_size(tiny_config, run_here, tmp_path, monkeypatch, method):
    config, shapes = tiny_config(method, "train.epochs=0.4"), []
    module = load_plugin("ray_sassl.methods", method)
    encode = module.encode_by_size

    def spy(network: nn.Module, views: Sequence[Tensor]) -> Tensor:
        shapes.append([tuple(view.shape[1:]) for view in views])
        return encode(network, views)

    monkeypatch.setattr(module, "encode_by_size", spy)
    run = run_here(config, tmp_path)
    assert run.outcome.step == 1
    assert math.isfinite(run.losses[0])
    student, *teacher = shapes
    assert student == [(3, 16, 16)] * 2 + [(3, 8, 8)] * 3
    assert teacher == ([[(3, 16, 16)] * 2] if method == "dino" else [])


def test_views_are_handed_over_in_the_order_of_their_numbers():
    arrays = {f"view_{number}": np.full((2, 4, 4, 3), number, np.uint8) for number in (10, 2, 0, 11, 1, *range(3, 10))}
    batch = to_device(arrays | {"sample_id": np.arange(2), "epoch": np.zeros(2, np.int64)}, torch.device("cpu"))
    assert [int(view[0, 0, 0, 0]) for view in batch.views] == list(range(12))


def test_undecodable_rows_are_left_out_and_all_others_seen_once_across_a_resume(tiny_config, tiny_data_with_bad_rows, run_here, tmp_path):
    config = tiny_config("simclr", f"data.path={tiny_data_with_bad_rows}")
    stopped = run_here(config, tmp_path, LocalContext(stop_at_step=4))
    resumed = run_here(config, tmp_path)
    seen = Counter(stopped.taken + resumed.taken)
    good = set(range(44)) - {5, 30}
    assert set(seen.values()) == {1}
    assert {sample for epoch, sample in seen if epoch == 0} == good
    assert {sample for epoch, sample in seen if epoch == 1} == good
    assert {row.sample_id for row in stopped.bad + resumed.bad} == {5, 30}


def test_a_finished_run_that_is_resumed_is_finished_already(tiny_config, run_here, tmp_path):
    config = tiny_config("simclr", "train.epochs=0.8")
    first = run_here(config, tmp_path)
    again = run_here(config, tmp_path)
    assert again.outcome == first.outcome
    assert again.losses == []


# The record


def test_collapse_metrics_are_logged_with_the_loss_and_its_chance_value(whole):
    metrics = whole[2].metrics
    assert {"loss", "chance_loss", "embedding_std", "effective_rank", "learning_rate", "images_per_s", "data_wait", "epoch"} <= metrics[
        0
    ].keys()
    assert [report["step"] for report in metrics] == list(range(1, NUM_STEPS + 1))
    assert metrics[2]["epoch"] == pytest.approx(3 * 16 / 44)
    assert 1 <= metrics[-1]["effective_rank"] <= 8.01


def test_a_run_is_scored_by_the_network_that_evaluate_names(tiny_config, tiny_data, run_here, tmp_path):
    labeled = (f"evaluate.train={{path: {tiny_data}}}", "evaluate.size_px=16", "train.epochs=0.8")
    scores = []
    for changes in ((), ("evaluate.network=teacher", "evaluate.layer=projector")):
        metrics = run_here(tiny_config("moco", *labeled, *changes), tmp_path / str(len(changes))).metrics
        scores.append([report["knn_top1"] for report in metrics if "knn_top1" in report])
        assert len(scores[-1]) == 1
    with pytest.raises(UsageError, match=r"evaluate\.network=teacher: this method has no momentum encoder"):
        run_here(tiny_config("simclr", "evaluate.network=teacher"), tmp_path / "none")


def test_the_same_class_rates_of_a_run_are_logged_where_its_images_have_labels(tiny_config, run_here, tmp_path):
    changes = ("train.epochs=1", "method.fa.augmentation={name: nearest, support_size: 32}", "stylize=color_statistics")
    metrics = run_here(tiny_config("moco", *changes), tmp_path / "labeled").metrics
    for name in ("batch", "queue", "neighbors", "partners"):  # four classes of equal size
        assert 0 <= metrics[-1][f"same_class_{name}"] <= 0.7
    assert 0.1 < metrics[-1]["same_class_batch"] < 0.3
    unlabeled = run_here(tiny_config("moco", *changes, "data.label_column=null"), tmp_path / "unlabeled").metrics
    assert not [name for name in unlabeled[-1] if name.startswith("same_class")]


def test_metrics_are_logged_at_the_first_the_last_and_every_so_many_steps(tmp_path):
    settings = TrainConfig(epochs=1, global_batch=4, log_every=4)
    context = LocalContext()
    train(Job(Linear(), _batches(40, 4), settings, SGD, 40, 0, str(tmp_path), "", context))
    assert [report["step"] for report in context.reports] == [1, 4, 8, 10]


def test_the_learning_rate_warms_up_to_the_peak_for_the_global_batch(tmp_path):
    optim = OptimConfig(base_lr=0.5, lr_scaling="linear", warmup_epochs=1, momentum=0)
    settings = TrainConfig(epochs=2, global_batch=4, log_every=1)
    context = LocalContext()
    train(Job(Linear(), _batches(16, 4, 2), settings, optim, 16, 0, str(tmp_path), "", context))
    peak = 0.5 * 4 / 256
    rates = [report["learning_rate"] / peak for report in context.reports]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 0.5 + 0.5 * math.cos(math.pi / 4), 0.5, 0.5 - 0.5 * math.cos(math.pi / 4)])


def test_parameters_of_constant_learning_rate_stay_at_the_peak_also_after_a_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(Linear, "constant_lr_parameters", lambda self: [self.backbone.weight])
    optim = OptimConfig(base_lr=0.5, lr_scaling="none", warmup_epochs=1, momentum=0)
    settings = TrainConfig(epochs=2, global_batch=4, log_every=1)
    train(Job(Linear(), _batches(16, 4, 2), settings, optim, 16, 0, str(tmp_path), "", LocalContext(stop_at_step=7)))
    resume = latest_checkpoint(str(tmp_path))
    assert resume is not None
    train(Job(Linear(), _batches(16, 4), settings, optim, 16, 0, str(tmp_path), "", LocalContext(), resume))
    for _, path in list_checkpoints(str(tmp_path)):
        groups = read_checkpoint(path).state["optimizer"]["param_groups"]
        assert [group["lr"] for group in groups[2:]] == [0.5, 0.5]
        assert all(group["lr"] < 0.5 for group in groups[:2])


@pytest.mark.parametrize(("method", "frozen"), [("dino", "last_layer_frozen"), ("swav", "prototypes_frozen")])
def test_adamw_begins_to_count_when_frozen_weights_are_let_go(tiny_config, run_here, tmp_path, method, frozen):
    """Its first steps would be far too long where it had taken zeros for gradients meanwhile, and weight decay would have moved them."""
    config = tiny_config(method, "optim.name=adamw", "optim.weight_decay=0.1", f"method.{frozen}=0.5")
    run_here(config, str(tmp_path))
    checkpoint = latest_checkpoint(str(tmp_path))
    assert checkpoint is not None
    steps = {int(state["step"]) for state in checkpoint.state["optimizer"]["state"].values()}
    assert steps == {3, 6}


def test_frozen_weights_stay_as_they_were_drawn_also_under_weight_decay(tiny_config, run_here, tmp_path):
    config = tiny_config("dino", "optim.weight_decay=0.1", "method.last_layer_frozen=1")
    weights = []
    for stop_at_step in (1, None):
        run_here(config, str(tmp_path), LocalContext(stop_at_step=stop_at_step))
        checkpoint = latest_checkpoint(str(tmp_path))
        assert checkpoint is not None
        weights.append(checkpoint.state["method"]["head.directions"])
    assert torch.equal(*weights)


def test_a_checkpoint_is_left_at_the_end_of_every_epoch(tmp_path):
    _train(tmp_path, epochs=2.5, keep_checkpoints=9, checkpoint_min_s=0)
    assert [step for step, _ in list_checkpoints(str(tmp_path))] == [3, 6, 7]


def test_an_epoch_that_ends_too_soon_after_a_checkpoint_leaves_none(tmp_path, monkeypatch):
    context = LocalContext()
    monkeypatch.setattr(saving.CheckpointWriter, "is_writing", lambda writer: False)
    monkeypatch.setattr(saving, "time", SimpleNamespace(monotonic=lambda: 20.0 * len(context.reports)))
    _train(tmp_path, context=context, epochs=4, keep_checkpoints=9, checkpoint_min_s=100)
    assert [step for step, _ in list_checkpoints(str(tmp_path))] == [3, 9, 12]


def test_training_does_not_wait_for_a_checkpoint_that_is_written_for_longer_than_an_epoch(tmp_path, monkeypatch):
    at_last_step, in_time = threading.Event(), []

    class Context(LocalContext):
        def report(self, metrics: dict[str, float]) -> None:
            super().report(metrics)
            if metrics["step"] == 9:
                at_last_step.set()

    def write(*args: Any) -> str:
        in_time.append(at_last_step.wait(20))
        return write_checkpoint(*args)

    monkeypatch.setattr(saving, "write_checkpoint", write)
    _train(tmp_path, context=Context(), epochs=3, keep_checkpoints=9, checkpoint_min_s=1e-9)
    assert [step for step, _ in list_checkpoints(str(tmp_path))] == [3, 9]
    assert in_time == [True, True]


def test_checkpoints_are_left_every_so_many_steps_and_at_the_end(tmp_path):
    _train(tmp_path, epochs=2, checkpoint_every=4, keep_checkpoints=9)
    assert [step for step, _ in list_checkpoints(str(tmp_path))] == [4, 6]


def test_scores_that_fail_are_counted_and_the_run_goes_on_to_its_last_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    num_calls = 0

    def score(backbone: nn.Module, check: Callable[[], None]) -> dict[str, float]:
        nonlocal num_calls
        num_calls += 1
        if num_calls != 2:
            raise RuntimeError("the test images have gone")
        return {"knn_top1": 0.5}

    settings, context = TrainConfig(epochs=2, global_batch=4, log_every=100, evaluate_every=2), LocalContext()
    outcome = train(Job(Linear(), _batches(12, 4, 2), settings, SGD, 12, 0, str(tmp_path), "", context, evaluate=score))
    assert (outcome.status, outcome.step) == ("finished", 6)
    assert latest_checkpoint(str(tmp_path)).step == 6  # pyright: ignore[reportOptionalMemberAccess]
    scored = [report for report in context.reports if "evaluation" in report]
    assert [report.get("failed_evaluations") for report in scored] == [1, None, 2]
    assert "The scores at step 2 could not be computed; the run goes on without them. the test images have gone" in caplog.text


def test_the_encoder_is_scored_at_its_period_and_at_the_end(tmp_path):
    context, scored = LocalContext(), []

    def score(backbone: nn.Module, check: Callable[[], None]) -> dict[str, float]:
        scored.append(backbone)
        return {"knn_top1": 0.1 * len(scored)}

    settings = TrainConfig(epochs=2, global_batch=4, log_every=100, evaluate_every=2)
    method = Linear()
    train(Job(method, _batches(12, 4, 2), settings, SGD, 12, 0, str(tmp_path), "", context, evaluate=score))
    evaluations = [report for report in context.reports if "knn_top1" in report]
    assert [(report["step"], report["evaluation"], report["epoch"]) for report in evaluations] == [
        (step, number, pytest.approx(step / 3)) for step, number in ((2, 1), (4, 2), (6, 3))
    ]
    assert scored == [method.backbone] * 3


def test_test_scores_are_the_last_line_of_a_run_that_is_complete_and_has_its_checkpoint(tmp_path):
    settings = TrainConfig(epochs=2, global_batch=4, log_every=1)

    def score(backbone: nn.Module, check: Callable[[], None]) -> dict[str, float]:
        assert latest_checkpoint(str(tmp_path)) is not None
        return {"test_knn_top1": 0.5}

    stopped, whole = LocalContext(stop_at_step=3), LocalContext()
    train(Job(Linear(), _batches(12, 4, 2), settings, SGD, 12, 0, str(tmp_path), "", stopped, final_test=score))
    assert not any("test_knn_top1" in report for report in stopped.reports)
    train(Job(Linear(), _batches(12, 4, 2), settings, SGD, 12, 0, str(tmp_path), "", whole, final_test=score))
    assert whole.reports[-1] == {"step": 6, "epoch": 2.0, "test_knn_top1": 0.5}
    assert not any("test_knn_top1" in report for report in whole.reports[:-1])


def _evaluations(reports: list[dict[str, float]]) -> list[tuple[float, float]]:
    return [(report["step"], report["evaluation"]) for report in reports if "evaluation" in report]


def test_without_labeled_images_evaluations_are_numbered_with_what_is_logged(tmp_path):
    context = LocalContext()
    _train(tmp_path, context=context, epochs=4, log_every=2, evaluate_every=3)
    assert [report["step"] for report in context.reports] == [1, 2, 4, 6, 8, 10, 12]
    assert _evaluations(context.reports) == [(4, 1), (6, 2), (10, 3), (12, 4)]
    assert all("loss" in report for report in context.reports)


def test_a_resumed_run_gives_an_evaluation_the_number_that_it_had(tmp_path):
    whole, first, second = LocalContext(), LocalContext(stop_at_step=5), LocalContext()
    _train(tmp_path / "whole", context=whole, epochs=4, log_every=1, evaluate_every=2)
    _train(tmp_path / "parts", context=first, epochs=4, log_every=1, evaluate_every=2)
    _train(tmp_path / "parts", context=second, epochs=4, log_every=1, evaluate_every=2, resume=latest_checkpoint(str(tmp_path / "parts")))
    assert _evaluations(whole.reports) == [(2, 1), (4, 2), (6, 3), (8, 4), (10, 5), (12, 6)]
    assert _evaluations(first.reports) + _evaluations(second.reports) == _evaluations(whole.reports)


class _Stopping(LocalContext):
    """A context in which a stop, or a machine's notice, comes during an evaluation."""

    stops = leaves = False

    def stop_requested(self) -> bool:
        return self.stops

    def is_leaving(self) -> bool:
        return self.leaves


def _scored(folder: Path, context: _Stopping, press: Callable[[], None], *, resume: Checkpoint | None = None, **job: Any) -> Outcome:
    def score(backbone: nn.Module, check: Callable[[], None]) -> dict[str, float]:
        check()
        press()
        check()
        return {"knn_top1": 0.5}

    settings = TrainConfig(epochs=2, global_batch=4, log_every=100, evaluate_every=2)
    done = resume.step if resume is not None else 0
    batches = itertools.islice(_batches(12, 4, 2), done, None)
    scores: dict[str, Any] = dict.fromkeys(job or ("evaluate",), score)
    return train(Job(Linear(), batches, settings, SGD, 12, 0, str(folder), "", context, resume=resume, **scores))


def test_an_evaluation_that_ends_on_all_ranks_is_told_of_once(caplog: pytest.LogCaptureFixture):
    for rank in range(3):
        with loop._cut_short_by(LocalContext(rank, 3), lambda: True, f"the scores of rank {rank}") as (check, is_done):
            check()
        assert not is_done()
    assert [record.message.split(" are ")[0] for record in caplog.records] == ["Stopping: the scores of rank 0"]


def test_a_stop_cuts_an_evaluation_short_so_that_the_checkpoint_is_in_time_and_a_resumed_run_makes_up_for_it(tmp_path, caplog):
    stopped, resumed = _Stopping(), _Stopping()
    outcome = _scored(tmp_path, stopped, lambda: setattr(stopped, "stops", len(stopped.reports) == 1))
    assert (outcome.status, outcome.step) == ("interrupted", 3)
    assert _evaluations(stopped.reports) == []
    assert "the scores at step 2 are left for later" in caplog.text
    _scored(tmp_path, resumed, lambda: None, resume=latest_checkpoint(str(tmp_path)))
    assert _evaluations(resumed.reports) == [(3, 1), (4, 2), (6, 3)]


def _only(name: str) -> dict[str, Any]:
    return {name: True}


@pytest.mark.parametrize("last", ["evaluate", "final_test"])
def test_a_stop_during_the_last_scores_leaves_the_checkpoint_and_they_are_computed_when_the_run_is_resumed(last: Any, tmp_path):
    stopped, resumed = _Stopping(), _Stopping()
    outcome = _scored(tmp_path, stopped, lambda: setattr(stopped, "stops", stopped.reports[-1]["step"] == 6), **_only(last))
    assert (outcome.status, outcome.step) == ("interrupted", 6)
    checkpoint = latest_checkpoint(str(tmp_path))
    assert checkpoint is not None
    outcome = _scored(tmp_path, resumed, lambda: None, resume=checkpoint, **_only(last))
    assert outcome.status == "finished"
    assert [report["knn_top1"] for report in resumed.reports if "knn_top1" in report] == [0.5]


def test_a_machine_that_goes_away_gets_its_checkpoint_before_the_scores(tmp_path):
    context = _Stopping()
    outcome = _scored(tmp_path, context, lambda: setattr(context, "leaves", True))
    assert outcome.status == "finished"
    assert list_checkpoints(str(tmp_path))[0][0] == 3
    assert _evaluations(context.reports) == [(4, 2), (6, 3)]


def test_a_stream_that_bad_images_made_shorter_ends_with_an_evaluation(tmp_path):
    context = LocalContext()
    settings = TrainConfig(epochs=3, global_batch=4, log_every=100)
    score = {"knn_top1": 0.5}
    train(Job(Linear(), _batches(12, 4, 2), settings, SGD, 12, 0, str(tmp_path), "", context, evaluate=lambda backbone, check: score))
    assert _evaluations(context.reports) == [(3, 1), (6, 2), (6, 3)]


def test_evaluations_are_counted_by_epochs_or_by_steps_and_the_last_one_counts():
    by_epoch = TrainConfig(epochs=2.5, global_batch=100)  # 1,030 rows: epochs end within the steps 11, 21, ...; 25 steps in all
    by_step = by_epoch.model_copy(update={"evaluate_every": 10})
    assert num_evaluations(by_epoch, 1030) == num_evaluations(by_step, 1030) == 3
    assert num_evaluations(by_epoch.model_copy(update={"evaluate_every": 5}), 1030) == 5
    assert num_evaluations(by_epoch.model_copy(update={"evaluate_every": 1000}), 1030) == 1
    assert num_evaluations(by_epoch.model_copy(update={"epochs": 10}), 50_000) == 10


# The arithmetic


def test_accumulated_parts_give_the_update_of_the_whole_batch(tmp_path):
    whole, _ = _train(tmp_path / "whole")
    parts, _ = _train(tmp_path / "parts", accumulate=2)
    torch.testing.assert_close(parts.backbone.weight, whole.backbone.weight)
    assert not torch.equal(whole.backbone.weight, torch.ones(1, 3))


def test_gradients_are_scaled_down_to_the_norm_that_is_asked_for(tmp_path):
    method, _ = _train(tmp_path, clip_norm=0.01, num_rows=4)
    assert (method.backbone.weight - 1).norm().item() == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_the_network_sees_normalized_pixels(tmp_path):
    method, _ = _train(tmp_path, num_rows=4, pixel_mean=(0.5, 0.5, 0.5), pixel_std=(0.5, 0.25, 0.25))
    pixels = torch.from_numpy(next(_batches(4, 4))["view_0"]).double().div(255).mean((1, 2))
    x = (pixels - 0.5) / torch.tensor([0.5, 0.25, 0.25])
    expected = 1 - 0.1 * (2 * x.sum(1, keepdim=True) * x).mean(0)
    torch.testing.assert_close(method.backbone.weight[0].detach().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_bfloat16_is_autocast_and_leaves_the_weights_in_float32(tmp_path, precision):
    method, _ = _train(tmp_path, precision=precision)
    assert {autocast for _, autocast, _, _ in method.noted} == {precision == "bfloat16"}
    assert method.backbone.weight.dtype == torch.float32


def test_views_reach_the_network_in_channels_last_layout_without_a_copy(tmp_path):
    arrays = next(_batches(4, 4))
    batch = to_device(arrays, torch.device("cpu"))
    assert batch.views[0].data_ptr() == arrays["view_0"].ctypes.data
    method, _ = _train(tmp_path)
    assert all(is_channels_last for is_channels_last, *_ in method.noted)


def test_random_draws_depend_only_on_the_step_and_differ_between_steps(tmp_path):
    first, _ = _train(tmp_path / "a")
    torch.rand(7)
    second, _ = _train(tmp_path / "b")
    assert [(seed, draw.item()) for *_, seed, draw in first.noted] == [(seed, draw.item()) for *_, seed, draw in second.noted]
    assert len({seed for *_, seed, _ in first.noted}) == 3


def test_the_encoder_its_heads_and_their_momentum_copies_are_compiled(tiny_config, run_here, tmp_path, monkeypatch):
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, *args, **options: compiled.append(self))
    methods: list[Method] = []
    place = loop._place
    monkeypatch.setattr(loop, "_place", lambda job: (methods.append(job.method), place(job))[1])
    run_here(tiny_config("moco", "train.compile=true", "train.epochs=0.4"), tmp_path)
    names = {name for name, child in methods[0].named_children() if child in compiled}
    assert names == {"backbone", "projector", "key_backbone", "key_projector"}


# What the user is told


def test_a_diverging_run_stops_with_advice_and_keeps_its_sound_checkpoints(tiny_config, run_here, tmp_path):
    config = tiny_config(
        "simclr", "optim.base_lr=1e30", "optim.warmup_epochs=0", "method.projector_last_bn=false", "train.checkpoint_every=1"
    )
    with pytest.raises(DivergedError, match=r"at step \d.*Lower optim\.base_lr, lengthen optim\.warmup_epochs, set train\.clip_norm"):
        run_here(config, tmp_path)
    for _, path in list_checkpoints(str(tmp_path)):
        assert all(torch.isfinite(weight).all() for weight in read_checkpoint(path).backbone.values())


def test_weights_that_are_not_finite_are_never_saved_between_logged_steps(tmp_path):
    method = Linear()
    nn.init.constant_(method.backbone.weight, math.nan)
    with pytest.raises(DivergedError, match="step 1"):
        _train(tmp_path, method=method, log_every=100, checkpoint_every=1, epochs=2)
    assert list_checkpoints(str(tmp_path)) == []


def test_too_few_images_for_one_batch_are_refused(tiny_config, run_here, tmp_path):
    with pytest.raises(UsageError, match=r"train\.epochs=1 over 44 images make no full batch of train\.global_batch=64"):
        run_here(tiny_config("simclr", "train.epochs=1", "train.global_batch=64"), tmp_path)


@pytest.mark.parametrize(("workers", "accumulate", "near"), [(3, 1, "255 or 258"), (3, 100, "300$"), (7, 2, "252 or 266")])
def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_sizes(workers, accumulate, near):
    with pytest.raises(UsageError, match=rf"global_batch=256 does not divide by {workers} workers.*{near}"):
        micro_batch(TrainConfig(global_batch=256, accumulate=accumulate), workers)


def test_a_batch_divides_over_workers_and_parts():
    assert micro_batch(TrainConfig(global_batch=256, accumulate=2), 4) == 32


def test_a_checkpoint_brings_the_optimizers_state_and_the_config_its_settings():
    weight = nn.Parameter(torch.ones(2))
    before = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=0.1)
    weight.sum().backward()
    before.step()
    after = torch.optim.SGD([weight], lr=0.2, momentum=0.5, weight_decay=0.0)
    load_optimizer(after, before.state_dict())
    (group,) = after.param_groups
    assert (group["momentum"], group["weight_decay"]) == (0.5, 0.0)
    torch.testing.assert_close(after.state[weight]["momentum_buffer"], before.state[weight]["momentum_buffer"])
