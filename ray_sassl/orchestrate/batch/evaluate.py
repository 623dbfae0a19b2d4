"""The evaluation of a run: its newest checkpoint, by protocols and by detection, in this process or on actors."""

from __future__ import annotations

import copy
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

from ray_sassl.config.overrides import apply_overrides, strictly
from ray_sassl.config.schema import EncoderConfig, EvaluateConfig, EvaluatedConfig, ExperimentConfig, FaultConfig, PixelsConfig
from ray_sassl.data import DataConfig
from ray_sassl.evaluation import Evaluation, Progress, no_progress
from ray_sassl.evaluation import run as evaluation_run
from ray_sassl.evaluation.datasets import load_evaluation_data
from ray_sassl.evaluation.detection import DetectConfig
from ray_sassl.evaluation.protocols import ProtocolConfig
from ray_sassl.evaluation.protocols.forgetting import Config as Forgetting
from ray_sassl.evaluation.protocols.robustness import Config as Robustness
from ray_sassl.evaluation.protocols.robustness import unused_stylizer
from ray_sassl.evaluation.results import STARTING_POINT, features_folder, results_folder, write_scores
from ray_sassl.evaluation.run import (
    PROTOCOLS,
    EvaluatedEncoder,
    EvaluationResult,
    Event,
    Failed,
    Finished,
    Started,
    in_one_line,
    protocol_configs,
    with_images,
)
from ray_sassl.evaluation.subject import untrained_backbone
from ray_sassl.evaluation.workplace import LocalWorkplace, Workplace
from ray_sassl.experiments import data_root
from ray_sassl.exporting.encoder import Network, encoder_without_run
from ray_sassl.files import storage
from ray_sassl.files.lock import hold_folder
from ray_sassl.files.paths import absolute
from ray_sassl.plugins import plugin_names
from ray_sassl.process.ending import end_after, on_notice
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.configs import Overrides, override_list
from ray_sassl.runs.directory import find_checkpoint
from ray_sassl.runs.process import load_backbone, load_network
from ray_sassl.runs.start import source_data, start_of
from ray_sassl.train.context import LocalContext

if TYPE_CHECKING:
    from ray_sassl.evaluation.detection.training import DetectionJob, DetectionResult
    from ray_sassl.evaluation.detection.voc import DetectionSet

DETECT = "detect"
"""The name of detection among the protocols."""


@dataclass(frozen=True)
class DetectionData:
    """Event: detection has found its data set."""

    train: DetectionSet
    test: DetectionSet


@dataclass(frozen=True)
class DetectionReport:
    """Event: a detector's training reports losses with their `step`, AP with its `measured_step`, or how many images it has `tested`."""

    values: dict[str, float]


DetectionEvent = Event | DetectionData | DetectionReport
Watch = Callable[[DetectionEvent], None]


def evaluate(
    run: str | os.PathLike[str],
    protocols: Sequence[str | ProtocolConfig] | Literal["all"],
    *,
    train: str | DataConfig | None = None,
    test: str | DataConfig | None = None,
    overrides: Overrides = None,
    baselines: bool = False,
    strict: bool = False,
    skip_absent: bool = False,
    detect_on: str | None = None,
    detection: DetectConfig | None = None,
    backbone: Network = None,
    out: str | None = None,
    keep_features: bool = True,
    actors: int | None = None,
    actor_cpus: float = 1.0,
    actor_gpus: float | None = None,
    address: str | None = None,
    progress: Progress = no_progress,
    watch: Watch = lambda event: None,
) -> EvaluationResult:
    """Evaluate an encoder and write the scores. If one of several protocols fails, the others continue.

    An encoder without a run is evaluated at its own size with its own colors, as far as these are known (`load_encoder`).

    Args:
        run: A run directory, whose newest checkpoint is used, a checkpoint, or any other encoder that `load_encoder` takes.
        protocols: Names, or configs for other settings than the defaults; "all" is every protocol whose images are available, and
            detection.
        train: Labeled images to fit on; by default, those of the run's config.
        test: Labeled images to measure on; by default, those of the run's config.
        overrides: Changes to the run's config, such as `{"evaluate.size_px": 64}`.
        baselines: Whether to evaluate the untrained encoder and raw pixels too.
        strict: Refuse data of which anything is left out, instead of saying so.
        skip_absent: Whether a protocol without images is skipped instead of being an error.
        detect_on: A data set in VOC's form to detect on as well; for "all", by default, `VOCdevkit` in the data folder.
        detection: Settings of detection.
        backbone: The network, for a file of weights that does not say so, as "resnet50".
        out: The folder for the results; by default, `evaluation/step-NUMBER` of the run, or `evaluations/NAME` for other encoders.
        keep_features: Whether to save features in the run directory (or in `out`), and to use those that were saved.
        actors: Number of actors; by default, this process does the work unless there is a cluster or more than one GPU. 0: this process.
        actor_cpus: CPUs per actor.
        actor_gpus: GPUs per actor; by default, one if the cluster has any.
        address: Address of a Ray cluster; by default, RAY_ADDRESS or this machine.
        progress: Shows the progress of computing features.
        watch: Is called with each event.

    Raises:
        UsageError: there is no checkpoint, a protocol or its images are missing, or the only protocol fails with one.
    """
    run = os.fspath(run)
    encoder, place = _find_encoder(run, backbone)
    changes = {name: DataConfig(path=data) if isinstance(data, str) else data for name, data in (("train", train), ("test", test)) if data}
    config = encoder.config
    config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update=changes)})
    config = apply_overrides(config, override_list(overrides))
    config = strictly(config) if strict else config
    encoder = replace(encoder, config=config)
    if (config.evaluate.network, config.evaluate.layer) != ("student", "backbone"):
        if not isinstance(config, ExperimentConfig):
            raise UsageError("evaluate.network and evaluate.layer have no effect on an encoder without a run: it has only its features")
        part = f"{config.evaluate.network}-{config.evaluate.layer}"
        encoder = replace(encoder, network=load_network(find_checkpoint(run), config), part=part)
        place = replace(place, results=storage.join(place.results, part))
    skip_absent = skip_absent or protocols == "all"
    configs, skipped = protocol_configs(plugin_names(PROTOCOLS) if protocols == "all" else protocols), {}
    configs = [_with_paintings(_with_source_data(protocol, place.run_dir), config) for protocol in configs]
    configs = [strictly(protocol) for protocol in configs] if strict else configs
    if skip_absent:
        configs, skipped = with_images(configs, config)
    data = None if all(protocol.brings_images for protocol in configs) else load_evaluation_data(config)
    out = out or place.results
    features = (place.features or storage.join(out, "features")) if keep_features else None
    with _workplace(actors, actor_cpus, actor_gpus, address, progress) as workplace:
        result = evaluation_run.evaluate(encoder, configs, data, workplace, out=out, features=features, baselines=baselines, watch=watch)
    result.skipped |= skipped
    if protocols == "all":
        detect_on = detect_on or voc_folder()
    if detect_on is not None:
        try:
            how = {
                "baselines": baselines,
                "strict": strict,
                "backbone": backbone,
                "out": out,
                "worker_cpus": actor_cpus,
                "address": address,
            }
            found = detect(run, detect_on, detection, **how, watch=watch)
            result.evaluations |= found.evaluations
            result.paths |= found.paths
        except Exception as error:  # noqa: BLE001 - recorded, as for the protocols
            result.failures[DETECT] = in_one_line(error)
            watch(Failed(DETECT, error))
    elif protocols == "all":
        result.skipped[DETECT] = f"there is no VOCdevkit in {data_root()}, and no other data set in VOC's form is given"
    return result


@dataclass(frozen=True)
class _Place:
    """Where an encoder's results go.

    Attributes:
        results: The folder for scores.
        features: The folder for features; None for one in the results.
        run_dir: The run directory; None without a run.
    """

    results: str
    features: str | None = None
    run_dir: str | None = None


def _find_encoder(path: str, backbone: Network) -> tuple[EvaluatedEncoder, _Place]:
    """The encoder of a run with its starting point, or another one; and where its results go by default."""
    outside = encoder_without_run(path, backbone)
    if outside is not None:
        facts = outside.facts
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", storage.name_of(path))
        pixels = PixelsConfig(pixel_mean=facts.pixel_mean, pixel_std=facts.pixel_std)
        config = EncoderConfig(name=name, backbone=facts.backbone, train=pixels, evaluate=EvaluateConfig(size_px=facts.size_px))
        return EvaluatedEncoder(outside.backbone, config, path), _Place(storage.join("evaluations", name))
    checkpoint = find_checkpoint(path)
    config, network = load_backbone(checkpoint)
    run_dir = storage.parent(storage.parent(checkpoint.path))
    place = _Place(results_folder(checkpoint.path, checkpoint.step), features_folder(checkpoint.path), run_dir)
    return EvaluatedEncoder(network, config, checkpoint.path, checkpoint.step, start_of(config, run_dir)), place


def _with_source_data(protocol: ProtocolConfig, run_dir: str | None) -> ProtocolConfig:
    """Forgetting with the images of the run that the weights came from, unless it has its own."""
    if run_dir is None or not isinstance(protocol, Forgetting) or protocol.train is not None or protocol.test is not None:
        return protocol
    return protocol.model_copy(update=source_data(run_dir))


def _with_paintings(protocol: ProtocolConfig, config: EvaluatedConfig) -> ProtocolConfig:
    """Robustness with the styles of `banks/held_out.safetensors` in the data folder, if it is there, for the published network; unless the
    run was trained with that bank."""
    if not isinstance(protocol, Robustness) or protocol.bank is not None or protocol.stylize is not None:
        return protocol
    bank = storage.join(data_root(), "banks", "held_out.safetensors")
    trained = config.stylize.name if isinstance(config, ExperimentConfig) else None
    used = config.sassl.bank if isinstance(config, ExperimentConfig) else None
    if used == bank or not storage.exists(bank) or unused_stylizer(trained).name != "magenta":
        return protocol
    return protocol.model_copy(update={"bank": bank})


@contextmanager
def _workplace(actors: int | None, cpus: float, gpus: float | None, address: str | None, progress: Progress) -> Iterator[Workplace]:
    """Actors if a cluster or a number of actors is given or this machine has several GPUs; else this process."""
    if actors == 0 or (actors is None and not address and not os.environ.get("RAY_ADDRESS") and torch.cuda.device_count() < 2):
        yield LocalWorkplace(progress=progress)
        return
    from ray_sassl.orchestrate.batch.actor_pool import ActorPoolConfig
    from ray_sassl.orchestrate.batch.features import evaluation_pool
    from ray_sassl.orchestrate.runtime.capacity import offered
    from ray_sassl.orchestrate.runtime.session import ray_session

    with ray_session(address):
        gpus = (1.0 if offered("GPU") >= 1 else 0.0) if gpus is None else gpus
        with evaluation_pool(ActorPoolConfig(num_actors=actors, num_cpus=cpus, num_gpus=gpus), progress) as pool:
            yield pool


def voc_folder() -> str | None:
    """The default data set of detection: `VOCdevkit` in the data folder, or None if that does not exist."""
    folder = storage.join(data_root(), "VOCdevkit")
    return folder if storage.exists(folder) else None


def detect(
    run: str | os.PathLike[str],
    data: str,
    settings: DetectConfig | None = None,
    *,
    baselines: bool = False,
    strict: bool = False,
    backbone: Network = None,
    out: str | None = None,
    workers: int | None = None,
    worker_cpus: float = 1.0,
    address: str | None = None,
    watch: Watch = lambda event: None,
) -> EvaluationResult:
    """Fine-tune an encoder as a detector, and write its average precision, its detections and figures.

    A first Ctrl-C or other signal (see `pretrain`) ends the call at the next step with a checkpoint, from which the next one goes on.

    Args:
        run: As for `evaluate`.
        data: A folder in PASCAL VOC's form.
        settings: Settings of the training.
        baselines: Whether to train the untrained encoder and the starting point too.
        strict: Refuse data with boxes that have no area or images that cannot be decoded, instead of leaving them out.
        backbone: As for `evaluate`.
        out: As for `evaluate`.
        workers: Number of workers; 0 trains in this process. By default, one per GPU of a cluster, or of this machine if it has several;
            else 0.
        worker_cpus: CPUs per worker.
        address: Address of a Ray cluster; by default, RAY_ADDRESS or this machine.
        watch: Is called with each event.

    Raises:
        UsageError: there is no checkpoint, the data set cannot be used, or the encoder cannot be a detector's backbone.
        FolderInUseError: another detection is at work in `out`.
        KeyboardInterrupt: a signal has ended it.
    """
    from ray_sassl.evaluation.detection.average_precision import check_installed
    from ray_sassl.evaluation.detection.report import detections_table, evaluation_of
    from ray_sassl.evaluation.detection.training import DetectionJob
    from ray_sassl.evaluation.detection.voc import read_voc

    check_installed()
    settings = settings or DetectConfig()
    encoder, place = _find_encoder(os.fspath(run), backbone)
    config = encoder.config
    out = absolute(out or place.results)
    storage.check_can_write(out, is_folder=True)
    data = absolute(data)
    train, test = read_voc(data, settings.train, settings.test)
    if strict and (dropped := train.num_dropped + test.num_dropped):
        raise UsageError(f"{data}: {dropped:,} boxes have no area and would be left out. With --strict nothing may be left out.")
    settings = settings.model_copy(update={"max_bad_fraction": 0.0}) if strict else settings
    watch(DetectionData(train, test))
    encoders = {encoder.name: encoder.network}
    if baselines:
        encoders |= {STARTING_POINT: encoder.start} if encoder.start is not None else {}
        encoders["untrained encoder"] = untrained_backbone(config)
    evaluations: dict[str, Evaluation] = {}
    bad: set[tuple[str, int]] = set()
    detections = None
    suffixes = [f"-{name.partition(' ')[0]}" if number else "" for number, name in enumerate(encoders)]
    files, stop = [storage.join(out, f"{DETECT}{suffix}-checkpoint.pt") for suffix in suffixes], threading.Event()
    fault = config.fault if isinstance(config, ExperimentConfig) else FaultConfig()
    with hold_folder(out, DETECT):
        with (
            on_notice(stop.set, grace_s=fault.grace_s, preempt_signal=fault.preempt_signal) as notice,
            _detection_place(workers, worker_cpus, address, watch, stop) as train_and_test,
        ):
            for number, (name, network) in enumerate(encoders.items()):
                watch(Started(DETECT, name))
                pixels = tuple(config.train.pixel_mean), tuple(config.train.pixel_std)
                job = DetectionJob(network, *pixels, train, test, settings, files[number])
                found = train_and_test(copy.deepcopy(job))
                if found is None:
                    break
                evaluations[name] = evaluation_of(job, found)
                bad |= {(row.path, row.sample_id) for rows in found.bad.values() for row in rows}
                detections = detections if number else detections_table(found)
        if len(evaluations) < len(encoders):
            end_after(notice)
        path = write_scores(
            out,
            DETECT,
            settings.model_dump(mode="json"),
            evaluations,
            checkpoint=encoder.checkpoint,
            step=encoder.step,
            data={"path": data},
            num_bad=len(bad),
            detections=detections,
        )
        for file in files:
            storage.remove(file)
    watch(Finished(DETECT, evaluations, path))
    return EvaluationResult({DETECT: evaluations}, {DETECT: path}, num_bad=len(bad))


@contextmanager
def _detection_place(
    workers: int | None, worker_cpus: float, address: str | None, watch: Watch, stop: threading.Event
) -> Iterator[Callable[[DetectionJob], DetectionResult | None]]:
    """The function that trains and tests a detector, in this process or as a job on the workers of a cluster; None after a stop."""

    def report(values: dict[str, float]) -> None:
        watch(DetectionReport(values))

    if workers is None and not address and not os.environ.get("RAY_ADDRESS"):
        workers = torch.cuda.device_count() if torch.cuda.device_count() > 1 else 0
    if workers == 0:
        from ray_sassl.evaluation.detection.training import run_detection

        class Context(LocalContext):
            def report(self, metrics: dict[str, float]) -> None:
                report(metrics)

            def stop_requested(self) -> bool:
                return stop.is_set()

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        yield lambda job: run_detection(job, Context(device=device))
        return
    from ray_sassl.orchestrate.batch.detect import detect_on_ray
    from ray_sassl.orchestrate.pretraining.train_job import Workers
    from ray_sassl.orchestrate.runtime.capacity import offered, present
    from ray_sassl.orchestrate.runtime.session import ray_session

    with ray_session(address):
        count = workers or max(1, int(present("GPU")))
        group = Workers(count, worker_cpus, use_gpu=offered("GPU") >= count)
        yield lambda job: detect_on_ray(job, group, watch=report, stop=stop)
