"""The Python API: what it offers, how it is described, and that it works where there is no main thread to itself."""

from __future__ import annotations

import asyncio
import inspect
import io
import subprocess
import sys
import threading
import typing
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ray.job_submission import JobDetails, JobStatus, JobType

import ray_sassl
from ray_sassl.config.files import to_yaml
from ray_sassl.config.overrides import OverrideError
from ray_sassl.data.decode import decode
from ray_sassl.orchestrate.jobs.submission import JobError, Jobs
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.configs import load_config, override_list

NAMES = ray_sassl.__all__


def write_photos(folder: Path, count: int = 48) -> str:
    """Small noisy images of three classes."""
    for number in range(count):
        path = folder / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return str(folder)


def overrides_for(photos: str) -> dict[str, Any]:
    return {
        "data.path": photos,
        "data.block_rows": 16,
        "views": "moco_v2_32",
        "views.size_px": 16,
        "train.global_batch": 16,
        "train.epochs": 1,
        "scaling.num_workers": 0,
        "evaluate.train": None,
        "evaluate.test": None,
        "evaluate.size_px": 16,
        "tracking.tensorboard": False,
        "method.queue_size": 32,
    }


def test_importing_it_reaches_neither_torch_nor_ray_and_lists_what_there_is():
    code = "import ray_sassl, sys; names = dir(ray_sassl); print('pretrain' in names, {'torch', 'ray', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["True", "set()"]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'ray_sassl' has no attribute 'pretrian'"):
        _ = ray_sassl.pretrian  # pyright: ignore[reportAttributeAccessIssue]


def test_a_function_is_found_also_where_a_module_of_its_name_was_imported():
    import ray_sassl.api.search

    assert callable(ray_sassl.search)


@pytest.mark.parametrize("name", NAMES)
def test_every_function_is_annotated_and_documented(name: str):
    function = getattr(ray_sassl, name)
    signature = inspect.signature(function)
    documentation = inspect.getdoc(function) or ""
    assert documentation.partition("\n")[0].endswith((".", ":")) or "\n\n" not in documentation.partition("Args:")[0].strip()
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter
        if len(signature.parameters) > 1:
            assert f"\n    {parameter.name}:" in documentation, f"{parameter.name} is not described"
    assert "Ray Data" not in documentation
    assert "Raises:" in documentation or name in {"list_ablations", "list_experiments", "list_weights", "list_spaces", "list_datasets"}


def test_a_config_is_named_by_an_experiment_a_file_a_run_directory_or_itself(tmp_path: Path):
    config = load_config("moco_cifar10_cpu", {"seed": 3})
    (tmp_path / "mine.yaml").write_text(to_yaml(config))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(config))
    assert load_config(config) == config
    assert load_config(tmp_path / "mine.yaml") == config
    assert load_config(tmp_path / "run") == config
    assert load_config(tmp_path / "run", ["seed=4"]).seed == 4
    with pytest.raises(UsageError, match="there is no file"):
        load_config(tmp_path / "none.yaml")


def test_overrides_take_any_value_and_text_stays_text(tmp_path: Path):
    config = load_config("moco_cifar10_cpu_sassl", {"name": "2023", "data.path": tmp_path, "sassl.alpha": (0.5, 1.0), "train.epochs": 2.5})
    assert (config.name, config.data.path, config.sassl.alpha, config.train.epochs) == ("2023", str(tmp_path), (0.5, 1.0), 2.5)
    assert load_config(config, {"evaluate.train": config.data}).evaluate.train == config.data
    assert override_list({"a": None, "b": (1, "x y")}) == [("a", None), ("b", [1, "x y"])]
    assert override_list(None) == []
    with pytest.raises(UsageError, match="override 'seed': object is not a value"):
        load_config(config, {"seed": object()})
    with pytest.raises(OverrideError, match=r"the nearest is train\.epochs"):
        load_config(config, {"train.epoch": 1})


def _in_a_loop(work: Callable[[], object]) -> None:
    async def run() -> None:
        work()

    asyncio.run(run())


def _in_a_thread(work: Callable[[], object]) -> None:
    errors: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("place", [_in_a_loop, _in_a_thread])
def test_from_photographs_to_an_exported_encoder_in_a_notebook(place: Callable[[Callable[[], object]], None], tmp_path: Path):
    photos = write_photos(tmp_path / "photos")

    def work() -> None:
        run = ray_sassl.pretrain("moco_cifar10_cpu", tmp_path / "run", overrides=overrides_for(photos))
        assert (run.status, run.step) == ("finished", 3)
        again = ray_sassl.pretrain(tmp_path / "run", overrides={"train.epochs": 2}, resume="if begun")
        assert (again.status, again.step, again.run_dir) == ("finished", 6, str(tmp_path / "run"))
        drawn = ray_sassl.draw_views("moco_cifar10_cpu", str(tmp_path / "views.png"), overrides=overrides_for(photos), num_rows=2)
        assert {dose.what for dose in drawn.doses} == {"jitter", "grayscale", "all together"}
        assert Image.open(io.BytesIO(Path(drawn.picture).read_bytes()), formats=["PNG"]).width > 32
        exported = ray_sassl.export(run.run_dir, str(tmp_path / "encoder"), format="safetensors")
        encoder = ray_sassl.load_encoder(exported.model)
        features = encoder(encoder.preprocess(decode((tmp_path / "photos/a/0.png").read_bytes(), 10**6))[None])
        assert features.shape == (1, encoder.facts.num_features)
        assert ray_sassl.inspect_data(photos, sheet=str(tmp_path / "sheet.png")).num_rows == 48

    place(work)


class _Client:
    """Of a cluster's job API: a job that prints two lines."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for number in range(2):
            await asyncio.sleep(0)
            yield f"{job_id}: line {number}\n"
        if self._error is not None:
            raise self._error

    def get_job_info(self, job_id: str) -> JobDetails:
        return JobDetails(type=JobType.SUBMISSION, submission_id=job_id, status=JobStatus.SUCCEEDED, entrypoint="true")  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("place", [_in_a_loop, _in_a_thread])
def test_a_job_is_followed_inside_a_running_event_loop(place: Callable[[Callable[[], object]], None]):
    jobs, lines = Jobs.__new__(Jobs), []
    jobs._client, jobs._asked = _Client(), "http://cluster:8265"  # pyright: ignore[reportAttributeAccessIssue]
    job = jobs._now("first")
    place(lambda: jobs.follow(job, lines.append))
    assert lines == ["first: line 0\n", "first: line 1\n"]
    jobs._client = _Client(ConnectionError("gone"))  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(JobError, match="no job API answers"):
        place(lambda: jobs.follow(job, lines.append))


def test_types_are_those_of_the_rooms():
    hints = typing.get_type_hints(ray_sassl.inspect_data)
    assert hints["return"].__name__ == "Summary"
