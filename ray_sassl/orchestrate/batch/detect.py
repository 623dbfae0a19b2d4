"""Detection as a Ray Train job: `detection.training.run_detection` in each worker. Ray must have been initialized.

The workers' gradients are averaged, and each tests its share of the test images. If a worker is lost, all are started again and continue
from the job's last checkpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

import ray
import ray.train
import ray.train.torch
import torch
from ray.actor import ActorHandle

from ray_sassl.evaluation.detection.training import DetectionJob, DetectionResult, run_detection
from ray_sassl.files import storage
from ray_sassl.orchestrate.pretraining.control import ProgressUpdate, start_control
from ray_sassl.orchestrate.pretraining.train_job import Workers
from ray_sassl.orchestrate.pretraining.worker import RayContext
from ray_sassl.process.errors import UsageError


class _Result:
    """One small actor that receives the result of the first worker."""

    def __init__(self) -> None:
        self._result: DetectionResult | None = None

    def put(self, result: DetectionResult) -> None:
        self._result = result

    def get(self) -> DetectionResult | None:
        return self._result


def detect_on_ray(
    job: DetectionJob,
    workers: Workers,
    *,
    watch: Callable[[dict[str, float]], None] = lambda report: None,
    stop: threading.Event | None = None,
) -> DetectionResult | None:
    """Train and test the detector on the workers; None after a stop, of which there is a checkpoint.

    Args:
        job: All workers must have access to its checkpoint.
        workers: The workers that share each step's batch.
        watch: Is called with what the workers report.
        stop: When it is set, the workers are asked to stop.

    Raises:
        UsageError: the cluster is too small, or the job has an error.
    """
    workers.check()
    folder = storage.parent(job.checkpoint)
    control = start_control(len(job.train), 1.0, storage.join(folder, "detect-quarantine.jsonl"))
    result = cast(Any, ray.remote)(num_cpus=0)(_Result).remote()
    spec = {"job": [ray.put(job)], "control": control, "result": result, "num_threads": workers.num_threads}

    def show(update: ProgressUpdate) -> None:
        for report in update.reports:
            watch(report)

    workers.run(_worker, spec, name="detect", folder=folder, control=control, watch=show, stop=stop)
    found = cast("DetectionResult | None", ray.get(result.get.remote()))
    assert found is not None or (stop and stop.is_set()), "the workers ended without a result and without an error"
    return found


def _worker(spec: dict[str, Any]) -> None:
    """Runs in each Ray Train worker."""
    control: ActorHandle = spec["control"]
    if ray.get(control.fatal.remote()):  # restarting the workers would give the same error
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
        raise  # this ends the other workers too, which may wait for this one
    if context.rank == 0 and found is not None:
        ray.get(spec["result"].put.remote(found))
