"""The plan against a simulation that knows none of its formulas, and against sums done by hand."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ray_sassl.cluster.curve import curve_picture
from ray_sassl.cluster.plan import (
    Counts,
    Measured,
    NodeKind,
    PlanError,
    Prices,
    Target,
    Workload,
    curve,
    expected_largest,
    num_stylizers,
    plan,
    predict,
    read_measured,
    read_prices,
    workload_of,
)
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.experiments import load_experiment
from ray_sassl.process.errors import UsageError
from tests.cluster.simulation import Line, simulate

WORKLOAD = Workload(
    num_images=1_000_000,
    epochs=10,
    global_batch=4096,
    accumulate=1,
    has_pool=True,
    view_bytes=2 * 224**2 * 3,
    task_cpus=1,
    worker_cpus=1,
    actor_cpus=1,
    actor_gpus=1.0,
    gradient_bytes=4 * 25e6,
)
MEASURED = Measured(
    decode_images_per_core_s=210, train_images_per_gpu_s=1000, stylize_images_per_gpu_s=900, train_step_cv=0.03, startup_s=0
)
WIDE = Prices(
    head=NodeKind(cpus=8, usd_per_hour=1),
    decode=NodeKind(cpus=16, network_gbit_s=1000, usd_per_hour=0.5),
    stylize=NodeKind(cpus=4, gpus=1, network_gbit_s=1000, usd_per_hour=1),
    train=NodeKind(cpus=96, gpus=8, network_gbit_s=100_000, usd_per_hour=20),
)
"""Networks that hold nothing back."""


def _simulated(counts: Counts, workload: Workload = WORKLOAD, measured: Measured = MEASURED) -> float:
    cores = counts.decode * 16 + (counts.stylize * 3 if workload.has_pool else 0) + counts.train * 96 - counts.trainers
    line = Line(
        decoders=cores,
        decode_rate=measured.decode_images_per_core_s,
        stylizers=counts.stylize,
        stylize_rate=measured.stylize_images_per_gpu_s or 1,
        trainers=counts.trainers,
        train_rate=measured.train_images_per_gpu_s,
        global_batch=workload.global_batch,
        train_cv=measured.train_step_cv,
    )
    return simulate(line, steps=60)


@pytest.mark.parametrize("trainers", [1, 2, 4, 16, 64])
@pytest.mark.parametrize("has_pool", [True, False])
def test_a_plan_is_within_a_tenth_of_a_simulation(trainers: int, has_pool: bool):
    workload = replace(WORKLOAD, has_pool=has_pool)
    planned = plan(workload, MEASURED, WIDE, trainers=trainers)
    assert planned.counts.trainers == trainers
    assert planned.bottleneck == "train"
    assert planned.images_per_s == pytest.approx(_simulated(planned.counts, workload), rel=0.1)


@pytest.mark.parametrize("trainers", [4, 16, 64])
@pytest.mark.parametrize("starved", ["decode", "stylize"])
def test_a_starved_line_runs_at_the_pace_of_its_slowest_stage(trainers: int, starved: str):
    measured = MEASURED.model_copy(update={"decode_images_per_core_s": 30.0})
    counts = plan(WORKLOAD, measured, WIDE, trainers=trainers).counts
    counts = replace(counts, **{starved: getattr(counts, starved) // 3})
    predicted = predict(WORKLOAD, measured, WIDE, counts)
    assert predicted.bottleneck == starved
    assert predicted.images_per_s == pytest.approx(_simulated(counts, measured=measured), rel=0.1)


def test_the_simulation_itself_agrees_with_arithmetic():
    """With constant times and plenty of all else, one server's rate comes out."""
    line = Line(decoders=8, decode_rate=100, stylizers=0, stylize_rate=1, trainers=2, train_rate=1e6, global_batch=256, decode_cv=1e-6)
    assert simulate(line) == pytest.approx(800, rel=0.01)
    slow = replace(line, decode_rate=1e6, train_rate=50, train_cv=1e-6)
    assert simulate(slow) == pytest.approx(100, rel=0.01)


def test_the_expected_largest_draw_agrees_with_drawing():
    draws = np.random.default_rng(0)
    assert expected_largest(1) == pytest.approx(0, abs=1e-12)
    for count in (2, 4, 16, 64):
        assert expected_largest(count) == pytest.approx(draws.standard_normal((20_000, count)).max(1).mean(), abs=0.03)


def test_hours_cost_and_traffic_are_sums_that_can_be_done_by_hand():
    measured = MEASURED.model_copy(update={"train_step_cv": 0.0, "startup_s": 1800.0, "encoded_bytes_per_image": 100_000.0})
    workload = replace(WORKLOAD, worker_cpus=12)  # no core of the training nodes is left for decoding
    found = predict(workload, measured, WIDE, Counts(decode=50, stylize=20, train=2, trainers=16))
    assert found.images_per_s == 16_000
    assert found.capacities["stylize"] == 18_000
    assert found.capacities["decode"] == 210 * (50 * 16 + 20 * 3)
    assert found.hours == pytest.approx(10e6 / 16_000 / 3600 + 0.5)
    assert found.usd == pytest.approx(found.hours * (1 + 50 * 0.5 + 20 * 1 + 2 * 20))
    share = 16 / 860
    assert found.traffic["decode"].from_storage == pytest.approx(16_000 * share * 100_000)
    assert found.traffic["decode"].sent == pytest.approx(16_000 * share * workload.view_bytes)
    views = 16_000 * workload.view_bytes / 2
    gradients = 2 * (2 - 1) / 2 * 100e6 * 16_000 / 4096
    assert found.traffic["train"].received == pytest.approx(views + gradients)
    total_stored = sum(getattr(found.counts, group) * found.traffic[group].from_storage for group in found.traffic)
    assert total_stored == pytest.approx(16_000 * 100_000)


def test_a_narrow_network_is_the_bottleneck_and_takes_more_nodes():
    narrow = WIDE.model_copy(update={"decode": NodeKind(cpus=16, network_gbit_s=1, usd_per_hour=1)})
    few = plan(replace(WORKLOAD, worker_cpus=12), MEASURED, WIDE, trainers=16).counts.decode
    planned = plan(replace(WORKLOAD, worker_cpus=12), MEASURED, narrow, trainers=16)
    assert planned.bottleneck == "train"
    assert planned.counts.decode > 2 * few
    assert planned.traffic["decode"].sent <= 1e9 / 8
    stuck = WIDE.model_copy(update={"train": NodeKind(cpus=96, gpus=8, network_gbit_s=5, usd_per_hour=1)})
    assert plan(WORKLOAD, MEASURED, stuck, trainers=16).bottleneck == "network of train"


def test_targets_are_reached_by_the_fewest_gpus():
    by_rate = plan(WORKLOAD, MEASURED, WIDE, Target(images_per_s=7000))
    assert by_rate.images_per_s >= 7000
    assert by_rate.counts.trainers == 8
    by_time = plan(WORKLOAD, MEASURED, WIDE, Target(hours=1.0))
    assert by_time.hours <= 1.0
    assert by_time.counts.trainers == 4
    fewer = [one for one in curve(WORKLOAD, MEASURED, WIDE) if one.counts.trainers < by_time.counts.trainers]
    assert all(one.hours > 1.0 for one in fewer)
    by_cost = plan(WORKLOAD, MEASURED, WIDE, Target(usd=40))
    assert by_cost.usd is not None
    assert by_cost.usd <= 40
    dearer = [one for one in curve(WORKLOAD, MEASURED, WIDE) if one.images_per_s > by_cost.images_per_s]
    assert all(one.usd is not None and one.usd > 40 for one in dearer)


def test_trainers_share_the_batch_in_equal_parts():
    numbers = [one.counts.trainers for one in curve(replace(WORKLOAD, global_batch=96, accumulate=2), MEASURED, WIDE)]
    assert numbers == [1, 2, 3, 4, 6, 8, 16, 24, 48]


def test_what_cannot_be_had_is_refused_with_what_can():
    with pytest.raises(PlanError, match="no number of GPUs reaches that: the fastest are"):
        plan(replace(WORKLOAD, global_batch=32), MEASURED, WIDE, Target(images_per_s=1e9))
    with pytest.raises(PlanError, match="the cheapest takes"):
        plan(WORKLOAD, MEASURED, WIDE, Target(usd=1))
    with pytest.raises(PlanError, match="a budget needs the price of every group"):
        plan(WORKLOAD, MEASURED, Prices(), Target(usd=100))
    with pytest.raises(PlanError, match="have no GPUs"):
        plan(WORKLOAD, MEASURED, WIDE.model_copy(update={"train": NodeKind(cpus=8)}))
    with pytest.raises(PlanError, match="have no GPUs"):
        plan(WORKLOAD, MEASURED, WIDE.model_copy(update={"train": NodeKind(cpus=8)}), Target(hours=24))


def test_a_batch_that_cannot_be_shared_is_refused_with_the_nearest_workers():
    with pytest.raises(PlanError, match=r"global_batch=4096 does not divide by 3 workers x train.accumulate=1; use 2 or 4 workers"):
        plan(WORKLOAD, MEASURED, WIDE, trainers=3)
    for target in (Target(), Target(hours=24), Target(usd=100)):
        with pytest.raises(PlanError, match=r"x train.accumulate=3; no number of workers divides it"):
            plan(replace(WORKLOAD, global_batch=256, accumulate=3), MEASURED, WIDE, target)


@pytest.mark.parametrize(
    ("gpus", "cpus", "fit"), [(1.0, 1.0, 2), (0.5, 1.0, 4), (0.3, 1.0, 6), (2.0, 1.0, 1), (0.25, 2.0, 4), (0.25, 0.0, 8)]
)
def test_the_pool_is_as_large_as_its_nodes_have_room_for(gpus: float, cpus: float, fit: int):
    prices = WIDE.model_copy(update={"stylize": NodeKind(cpus=8, gpus=2)})
    workload = replace(WORKLOAD, actor_gpus=gpus, actor_cpus=cpus)
    assert num_stylizers(workload, prices, Counts(decode=0, stylize=3, train=1, trainers=8)) == 3 * fit
    assert num_stylizers(replace(workload, has_pool=False), prices, Counts(0, 3, 1, 8)) == 0


@pytest.mark.parametrize("wanted", [{"actor_gpus": 2.0}, {"actor_cpus": 5.0}])
def test_a_stylizer_larger_than_its_node_is_refused(wanted: dict[str, float]):
    with pytest.raises(PlanError, match="a node that stylizes has 1 and 4; ask for less"):
        plan(replace(WORKLOAD, **wanted), MEASURED, WIDE)


def test_unknown_prices_leave_the_cost_open():
    assert plan(WORKLOAD, MEASURED, Prices()).usd is None


def test_measurements_of_several_files_are_merged_and_checked():
    found = read_measured({"a": '{"decode_images_per_core_s": 1, "train_images_per_gpu_s": 2}', "b": '{"num_images": 3}'}, num_images=9)
    assert (found.decode_images_per_core_s, found.train_images_per_gpu_s, found.num_images) == (1, 2, 3)
    assert read_measured({"a": '{"decode_images_per_core_s": 1, "train_images_per_gpu_s": 2}'}, num_images=9).num_images == 9
    for text, reason in (
        ('{"decode_images_per_core_s": 1}', "train_images_per_gpu_s: Field required"),
        ('{"decode_images_per_core_s": 0, "train_images_per_gpu_s": 2}', "greater than 0"),
        ('{"decode_images_per_core_s": 1, "train_images_per_gpu_s": 2, "x": 1}', "x: Extra inputs are not permitted"),
        ("[1]", "should be a mapping of rates, not list"),
        ("{", "is not JSON"),
    ):
        with pytest.raises(UsageError, match=reason):
            read_measured({"bench.json": text})


def test_prices_are_checked():
    assert read_prices("train: {cpus: 12, gpus: 1}", "it").train.gpus == 1
    with pytest.raises(UsageError, match=r"train\.cpus"):
        read_prices("train: {cpus: -1}", "it")


def test_a_workload_follows_from_the_experiment():
    config = load_experiment("moco_imagenet_sassl")
    found = workload_of(config, MEASURED.model_copy(update={"num_images": 7}), has_pool=True)
    assert (found.num_images, found.global_batch, found.view_bytes) == (7, config.train.global_batch, 2 * 224**2 * 3)
    with pytest.raises(UsageError, match="number of images is not known"):
        workload_of(config, MEASURED, has_pool=True)
    with pytest.raises(UsageError, match="stylize_images_per_gpu_s"):
        workload_of(config, Measured(decode_images_per_core_s=1, train_images_per_gpu_s=1, num_images=7), has_pool=True)
    on_cpus = apply_overrides(config, ["stream.pool.num_gpus=0"])
    with pytest.raises(UsageError, match="a plan is for stylizers on GPUs"):
        workload_of(on_cpus, MEASURED.model_copy(update={"num_images": 7}), has_pool=True)


def test_the_curve_is_a_picture_with_and_without_prices():
    for prices in (WIDE, Prices()):
        predictions = list(curve(WORKLOAD, MEASURED, prices))
        assert [one.counts.trainers for one in predictions] == sorted(one.counts.trainers for one in predictions)
        picture = Image.open(io.BytesIO(curve_picture(predictions, predictions[2], "moco")))
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 10


def test_nothing_at_all_takes_for_ever():
    found = predict(WORKLOAD, MEASURED, WIDE, Counts(decode=0, stylize=0, train=1, trainers=8))
    assert found.bottleneck == "stylize"
    assert math.isinf(found.hours)
