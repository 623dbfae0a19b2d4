from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch

from ray_sassl.style.distillation import DistillConfig
from ray_sassl.style.distillation.training import Distiller, draw_batch, schedule

CONFIG = DistillConfig(num_crops=24, steps=30, batch_size=4, warmup_steps=5, sizes_px=(32,), precision="float32")


def test_the_loss_falls_in_a_few_steps(teacher, crops):
    distiller = Distiller(teacher.transformer, crops.codes, CONFIG)
    logged = [distiller.train_step(crops) for _ in range(CONFIG.steps)]
    for part in ("pixels", "effect", "hints"):
        first, last = (torch.stack([parts[part] for parts in logged[span]]).mean() for span in (slice(3), slice(-3, None)))
        assert last < 0.95 * first, part


def test_the_teacher_does_not_change(teacher, crops):
    before = copy.deepcopy(teacher.transformer.state_dict())
    distiller = Distiller(teacher.transformer, crops.codes, CONFIG)
    for _ in range(3):
        distiller.train_step(crops)
    assert all(torch.equal(value, before[name]) for name, value in teacher.transformer.state_dict().items())


@pytest.mark.parametrize("stop", [2, 20])  # before and after the student's own codes come in
def test_training_resumed_from_a_checkpoint_equals_uninterrupted_training(teacher, crops, stop, tmp_path):
    whole = Distiller(teacher.transformer, crops.codes, CONFIG)
    for _ in range(stop):
        whole.train_step(crops)
    torch.save(whole.state_dict(), tmp_path / "checkpoint.pt")
    resumed = Distiller(teacher.transformer, crops.codes, CONFIG)
    resumed.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    for _ in range(3):
        assert whole.train_step(crops)["loss"] == resumed.train_step(crops)["loss"]
    first, second = whole.average.export(), resumed.average.export()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_batch_is_what_its_step_says(crops):
    first, again, other = draw_batch(crops, CONFIG, 3), draw_batch(crops, CONFIG, 3), draw_batch(crops, CONFIG, 4)
    assert torch.equal(first.contents, again.contents)
    assert not torch.equal(first.codes, other.codes)


def test_codes_are_mixed_by_alpha_and_often_only_the_style(crops):
    batches = [draw_batch(crops, CONFIG, step) for step in range(50)]
    for batch in batches:
        content, style = batch.own_codes.chunk(2)
        torch.testing.assert_close(batch.codes, (1 - batch.alpha) * content + batch.alpha * style)
    alpha = torch.cat([batch.alpha for batch in batches])
    assert 0.4 < (alpha == 1).float().mean() < 0.6
    assert alpha.min() < 0.1


def test_thumbnails_belong_to_their_codes(crops):
    batch = draw_batch(crops, CONFIG, 0)
    torch.testing.assert_close(batch.thumbnails.mean(dim=(2, 3)), batch.own_codes[:, :3], atol=0.02, rtol=0)
    torch.testing.assert_close(batch.contents.mean(dim=(2, 3)), batch.own_codes[:4, :3], atol=0.02, rtol=0)


def test_two_workers_share_a_batch(crops):
    parts = [draw_batch(crops, CONFIG, 3, rank, 2) for rank in range(2)]
    assert [len(part.contents) for part in parts] == [2, 2]
    assert not np.array_equal(parts[0].codes, parts[1].codes)


def test_the_learning_rate_rises_then_falls_to_zero():
    rates = [schedule(step, CONFIG) for step in range(CONFIG.steps + 1)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[4] == rates[5] == 1
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[5:]))
    assert rates[-1] == pytest.approx(0)


def test_sizes_that_cannot_be_stylized_are_refused():
    with pytest.raises(ValueError, match="multiples of 4 from 32 to 96"):
        DistillConfig(sizes_px=(32, 50))
