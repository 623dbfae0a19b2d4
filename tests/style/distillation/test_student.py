from __future__ import annotations

import torch

from ray_sassl.style.distillation.student import Student, stages
from ray_sassl.style.networks.style_network import SmallPredictor, StyleTransformer
from tests.style.distillation.conftest import CODE_SIZE


def _part(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def test_stages_end_in_what_the_transformer_paints():
    torch.manual_seed(0)
    transformer = StyleTransformer(CODE_SIZE, (4, 6, 8), 2)
    images, codes = torch.rand(2, 3, 36, 32), torch.randn(2, CODE_SIZE)
    pictures, found = stages(transformer, images, codes)
    torch.testing.assert_close(pictures, transformer(images, codes), atol=1e-5, rtol=0)
    assert [tuple(x.shape[1:]) for x in found] == [(8, 9, 8)] * 3 + [(6, 18, 16), (4, 36, 32)]


def test_exported_networks_do_what_the_student_does(teacher, crops):
    student = Student(crops.codes, teacher.transformer)
    state = student.export()
    predictor, transformer = SmallPredictor(CODE_SIZE), StyleTransformer(CODE_SIZE, (4, 4, 8), 1)
    predictor.load_state_dict(_part(state, "predictor."))
    transformer.load_state_dict(_part(state, "transformer."))
    images, codes = torch.rand(3, 3, 64, 64), torch.from_numpy(crops.codes[:3])
    with torch.no_grad():
        torch.testing.assert_close(predictor(images), student.codes(images), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(transformer(images, codes), student.stages(images, codes)[0], atol=1e-4, rtol=0)


def test_whitened_codes_have_unit_covariance_in_directions_that_vary(teacher, crops):
    student = Student(crops.codes, teacher.transformer)
    white = (torch.from_numpy(crops.codes) - student.mean) @ student.whiten
    variances = white.var(dim=0).sort().values
    assert variances[:2].max() < 1e-6  # the two constants
    assert (variances[2:] - 1).abs().max() < 0.2


def test_nothing_is_taken_from_the_teachers_weights(teacher, crops):
    torch.manual_seed(5)
    first = Student(crops.codes, teacher.transformer).export()
    for weight in teacher.transformer.parameters():
        weight.zero_()
    torch.manual_seed(5)
    again = Student(crops.codes, teacher.transformer).export()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_student_that_starts_from_another_paints_as_that_one_does(teacher, crops):
    torch.manual_seed(0)
    first = Student(crops.codes, teacher.transformer)
    other_codes = crops.codes[:9] * 0.8 + 0.1  # whitened otherwise
    second = Student(other_codes, teacher.transformer)
    second.start_from(first.export())
    images, codes = torch.rand(2, 3, 32, 32), torch.from_numpy(crops.codes[:2])
    torch.testing.assert_close(second.stages(images, codes)[0], first.stages(images, codes)[0], atol=1e-4, rtol=0)
    thumbnails = torch.rand(3, 3, 64, 64)
    torch.testing.assert_close(second.codes(thumbnails), first.codes(thumbnails), atol=1e-4, rtol=0)
