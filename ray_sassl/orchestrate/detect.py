"""Detection as a Ray Train job: `detection.training.run_detection` in each worker. Ray must have been initialised.

The workers' gradients are averaged, and each looks at its share of the test images. A worker that is lost is started again with the others, and they
go on from the job's last checkpoint.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from typing import Any, cast

import ray
import ray.train
import ray.train.torch
import torch
from ray.actor import ActorHandle
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from ray_sassl import storage
from ray_sassl.detection.training import DetectionJob, DetectionResult, run_detection
from ray_sassl.orchestrate.control import News, start_control
from ray_sassl.orchestrate.growth import Announcer, Need, ResourcesError, Waiting, is_one_machine, offered, say
from ray_sassl.orchestrate.worker import RayContext
from ray_sassl.plugins import UsageError

_LOOK_EVERY_S = 0.25
_MAX_FAILURES = 3


class _Result:
    """One small actor that takes what the first worker has found."""

    def __init__(self) -> None:
        self._result: DetectionResult | None = None

    def put(self, result: DetectionResult) -> None:
        self._result = result

    def get(self) -> DetectionResult | None:
        return self._result


def detect_on_ray(
    job: DetectionJob,
    *,
    num_workers: int,
    num_cpus: float = 1.0,
    use_gpu: bool = False,
    watch: Callable[[dict[str, float]], None] = lambda report: None,
) -> DetectionResult:
    """What the detector finds in the test images after its training on the workers.

    Args:
        job: Its checkpoint must be reached by all workers.
        num_workers: Among which each step's batch is shared.
        num_cpus: CPUs of one worker, and its threads.
        use_gpu: Whether each has a GPU.
        watch: Is shown what the workers report.

    Raises:
        UsageError: the cluster is too small, or the job cannot be done as it is.
    """
    need = Need(f"{num_workers} workers", num_workers, {"CPU": num_cpus} | ({"GPU": 1.0} if use_gpu else {}))
    for name in need.each:
        if need.total(name) > offered(name):
            raise ResourcesError(f"{num_workers} workers need {need.total(name):g} {name}s and the cluster can offer {offered(name):g}")
    folder = storage.parent(job.checkpoint)
    control = start_control(len(job.train), 1.0, storage.join(folder, "detect-quarantine.jsonl"))
    result = cast(Any, ray.remote)(num_cpus=0)(_Result).remote()
    spec = {"job": [ray.put(job)], "control": control, "result": result, "num_threads": max(1, int(num_cpus))}
    with tempfile.TemporaryDirectory(prefix="ray-sassl-") as ray_storage:
        trainer = TorchTrainer(
            _worker,
            train_loop_config=spec,
            scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu, resources_per_worker=dict(need.each)),
            run_config=RunConfig(
                name="detect",
                storage_path=ray_storage if is_one_machine() else storage.join(folder, ".ray"),
                failure_config=FailureConfig(max_failures=_MAX_FAILURES),
            ),
        )
        _fit(trainer, control, watch, Waiting([need]))
    if fatal := cast("str | None", ray.get(control.fatal.remote())):
        raise UsageError(fatal)
    found = cast("DetectionResult | None", ray.get(result.get.remote()))
    assert found is not None, "the workers ended without a result and without an error"
    return found


def _fit(trainer: TorchTrainer, control: ActorHandle, watch: Callable[[dict[str, float]], None], waiting: Waiting) -> None:
    """Run the trainer in a thread, so that this one can show how far it is."""
    errors: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:  # noqa: BLE001 - raised below, in the thread that can tell the user
            errors.append(error)

    thread = threading.Thread(target=fit, name="trainer", daemon=True)
    thread.start()
    is_running, has_begun, announce = True, False, Announcer(say)
    while is_running:
        thread.join(_LOOK_EVERY_S)
        is_running = thread.is_alive()
        announce(waiting.look(has_begun=has_begun))
        for report in cast(News, ray.get(control.news.remote())).reports:
            has_begun = True
            watch(report)
    if errors and ray.get(control.fatal.remote()) is None:
        raise errors[0]


def _worker(spec: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    control: ActorHandle = spec["control"]
    if ray.get(control.fatal.remote()):  # the workers were started again after an error that they would only meet again
        return
    torch.set_num_threads(spec["num_threads"])
    where = ray.train.get_context()
    device = ray.train.torch.get_device()
    assert isinstance(device, torch.device)
    context = RayContext(where.get_world_rank(), where.get_world_size(), device, control)
    job = cast(DetectionJob, ray.get(spec["job"][0]))
    try:
        found = run_detection(job, context)
    except UsageError as error:
        ray.get(control.fail.remote(str(error)))
        raise  # so that the others, which may wait for this one, are ended too
    if context.rank == 0:
        ray.get(spec["result"].put.remote(found))
