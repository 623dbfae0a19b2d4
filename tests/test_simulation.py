"""The simulation of a run on many GPUs obeys what can be calculated."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.simulation import Model, planned, simulated

FREE = Model(
    gpus=2, gpu_images_per_s=1000, batch=50, step_cv=0, core_images_per_s=1e5, read_s=0, window=400, block=100, task_cv=0, cores_per_node=4,
    store_bytes=1e12, network_bytes_per_s=1e15, deal_s=0, save_s=0, upload_s=0,
)  # fmt: skip
ONE_CORE = replace(FREE, cores_per_node=1, core_images_per_s=200, read_s=0.5)


@pytest.mark.parametrize("per_rank", [False, True])
def test_steps_decide_where_decoders_are_as_good_as_infinite(per_rank: bool):
    found = simulated(replace(FREE, per_rank=per_rank))
    assert found.images_per_s == pytest.approx(2000, rel=0.01)
    assert found.waiting == pytest.approx(0, abs=0.01)
    assert found.bottleneck == "training"


def test_the_slowest_of_many_gpus_decides_about_each_step():
    model = replace(FREE, gpus=16, step_cv=0.05)
    assert simulated(model).images_per_s == pytest.approx(16_000 / (1 + 0.05 * 2.355), rel=0.01)


def test_one_decoder_decides_where_it_is_slower_than_the_steps():
    found = simulated(ONE_CORE, seconds=500)
    assert found.images_per_s == pytest.approx(400 / (0.5 + 2), rel=0.02)
    assert (found.reading, found.decoding) == (pytest.approx(0.2, abs=0.02), pytest.approx(0.8, abs=0.02))
    assert found.bottleneck == "decoding"


@pytest.mark.parametrize(("read_s", "rate"), [(0.5, 200), (5.0, 80)])
def test_a_decoder_that_reads_ahead_waits_for_reading_only_where_that_takes_longer(read_s: float, rate: float):
    found = simulated(replace(ONE_CORE, reads_ahead=True, read_s=read_s), seconds=500)
    assert found.images_per_s == pytest.approx(rate, rel=0.02)


def test_a_slow_task_of_one_worker_costs_the_run_no_more_than_its_own_delay():
    model = replace(FREE, gpus=4, per_rank=True, core_images_per_s=500, cores_per_node=12, slow_s=20, store_bytes=3.2e9)
    rate = simulated(model, seconds=200).images_per_s
    lost_s = 200 * (1 - simulated(replace(model, slow_task=160), seconds=200).images_per_s / rate)
    assert 10 < lost_s < 20


def test_one_dealer_bounds_all_workers_and_one_for_each_does_not():
    model = replace(FREE, deal_s=0.1, gpus=4)
    assert simulated(model).images_per_s == pytest.approx(1000, rel=0.02)
    assert simulated(model).bottleneck == "one process deals"
    assert simulated(replace(model, per_rank=True)).images_per_s == pytest.approx(4000, rel=0.02)


def test_the_network_of_the_nodes_bounds_what_reaches_the_workers():
    model = replace(FREE, nodes=2, network_bytes_per_s=500 * FREE.image_bytes, prefetch_batches=32)
    found = simulated(replace(model, per_rank=True))
    assert found.images_per_s == pytest.approx(1000, rel=0.05)
    assert found.bottleneck == "network"


def test_training_stands_still_for_the_checkpoints_that_are_written():
    epoch_s = 10.0
    model = replace(FREE, epoch_images=int(2000 * epoch_s), save_s=0.5, batch=250, block=500, window=2000)
    assert simulated(model, seconds=1050).saving == pytest.approx(0.5 / (epoch_s + 0.5), rel=0.03)
    apart = simulated(replace(model, save_apart_s=60), seconds=1500)
    assert apart.saving == pytest.approx(0.5 / (6 * epoch_s + 0.5), rel=0.1)
    slow_store = replace(model, upload_s=30.0)
    assert simulated(slow_store, seconds=1050).images_per_s == pytest.approx(20_000 / 30.5, rel=0.05)
    assert simulated(replace(slow_store, save_apart_s=1e-9), seconds=1050).images_per_s > 0.95 * 2000


def test_slow_tasks_hold_up_an_order_however_many_cores_are_free():
    model = replace(FREE, core_images_per_s=2000, slow_share=0.02, cores_per_node=16, store_bytes=4000 * FREE.image_bytes)
    assert simulated(model).images_per_s < 0.8 * 2000


def test_the_planned_nodes_suffice_for_what_the_gpus_want():
    model = planned(Model(gpus=8))
    assert model.nodes * min(model.cores_per_node * model.core_images_per_s, model.network_bytes_per_s / model.image_bytes) >= (
        1.15 * model.wanted_images_per_s
    )


@pytest.mark.parametrize(("gpus", "measured"), [(1, 80.0), (2, 159.9), (4, 301.6)])
def test_it_agrees_with_what_was_measured_on_pretended_nodes(gpus: int, measured: float):
    """`benchmarks/cluster.py`, whose stages sleep: 80 images/s of a GPU, 50 of a core, blocks of 64 images of 32 px."""
    model = replace(
        FREE, gpus=gpus, gpu_images_per_s=80, batch=256 // gpus, core_images_per_s=50, window=512, block=64, cores_per_node=2 * gpus,
        deal_s=0.0038,
    )  # fmt: skip
    assert simulated(model, seconds=300).images_per_s == pytest.approx(measured, rel=0.1)
