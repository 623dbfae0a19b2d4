"""Training and testing a detector, as one of the processes that share the work.

The images of a step, their mirroring and the sampled regions depend only on (seed, step, rank), so a run can be repeated, and a stopped run
continues from its checkpoint with the same result. Damaged images are left out and counted: the next image of the
epoch takes the place of a damaged train image, and a test uses the images that can be decoded.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import logging
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FasterRCNN

from ray_sassl.data import DataConfig
from ray_sassl.data.ahead import ahead
from ray_sassl.data.decode import DecodeError, decode
from ray_sassl.data.quarantine import BadRow, Quarantine
from ray_sassl.evaluation import Split
from ray_sassl.evaluation.detection import REFERENCE_BATCH, DetectConfig
from ray_sassl.evaluation.detection.average_precision import Detections, average_precision, check_installed
from ray_sassl.evaluation.detection.network import build_detector
from ray_sassl.evaluation.detection.voc import DetectionSet
from ray_sassl.evaluation.store import encoder_digest
from ray_sassl.files import storage
from ray_sassl.nn.gather import gather_objects
from ray_sassl.process.errors import UsageError
from ray_sassl.train.checkpoint_folder import read_state_file
from ray_sassl.train.context import Context, data_parallel, on_any_rank
from ray_sassl.train.divergence import DivergedError
from ray_sassl.train.optim import decay_groups

log = logging.getLogger(__name__)

_MAX_PIXELS = DataConfig.model_fields["max_pixels"].default
_LOG_EVERY = 20
_TEST_BATCH = 2
_AHEAD = 3
_THREADS = 2
LOSSES = {
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "proposals",
    "loss_classifier": "classes",
    "loss_box_reg": "boxes",
}
"""torchvision's losses and their names in the record."""


@dataclass(frozen=True)
class DetectionJob:
    """A detector to train and test.

    Attributes:
        encoder: The encoder with its initial weights; it is changed.
        pixel_mean: Mean of each channel, of intensities in [0, 1].
        pixel_std: Standard deviation of each channel, of intensities in [0, 1].
        checkpoint: Path or URI of the file to continue from; all processes must reach it.
    """

    encoder: nn.Module
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    train: DetectionSet
    test: DetectionSet
    config: DetectConfig
    checkpoint: str

    @property
    def key(self) -> str:
        """sha256 of everything that the result depends on."""
        facts = [self.config.model_dump(mode="json", exclude={"checkpoint_every", "max_bad_fraction"}), self.pixel_mean, self.pixel_std]
        text = json.dumps([encoder_digest(self.encoder), self.train.fingerprint, self.test.fingerprint, *facts])
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class History:
    """The logged values.

    Attributes:
        losses: Means since the previous entry, with the `step`.
        measured: `step`, AP, AP50 and AP75 on the test set.
    """

    losses: list[dict[str, float]] = field(default_factory=list)
    measured: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class DetectionResult:
    """The detections after training, and the values logged during it.

    Attributes:
        tested: The test images that could be decoded.
        detections: The detections in each of them.
        bad: The images of each split that some process could not decode; a row's number is its place in the split.
    """

    tested: DetectionSet
    detections: list[Detections]
    history: History
    bad: dict[Split, list[BadRow]]


class _Images:
    """The images of both splits, and a count of the damaged ones that this process has read.

    Raises:
        TooManyBadRowsError: more of a split's images are damaged than the config allows.
    """

    def __init__(self, job: DetectionJob) -> None:
        self._sets: dict[Split, DetectionSet] = {"train": job.train, "test": job.test}
        self._quarantine = {
            split: Quarantine(len(part), job.config.max_bad_fraction, "max_bad_fraction") for split, part in self._sets.items()
        }

    def pixels(self, split: Split, row: int) -> Tensor | None:
        """(3, H, W) uint8, or None if the image cannot be decoded."""
        path = self._sets[split].paths[row]
        try:
            return torch.from_numpy(np.array(decode(storage.read_bytes(path), _MAX_PIXELS))).permute(2, 0, 1)
        except DecodeError as error:
            self._quarantine[split].add([BadRow(path, -1, row, str(error))])
            return None

    @property
    def bad(self) -> dict[Split, list[BadRow]]:
        return {"train": self._quarantine["train"].rows, "test": self._quarantine["test"].rows}

    def add(self, bad: dict[Split, list[BadRow]]) -> None:
        """Add images that other processes could not decode."""
        for split, rows in bad.items():
            self._quarantine[split].add(rows)

    def share(self) -> None:
        """Exchange the images that could not be decoded between all processes, which must all call it."""
        for part in gather_objects(self.bad):
            self.add(part)


def run_detection(job: DetectionJob, context: Context) -> DetectionResult | None:
    """Train and test; every process of the context must call it, and all return the same detections: None after a requested stop, of which
    there is a checkpoint.

    Raises:
        UsageError: the encoder, the images or the settings do not allow detection.
    """
    check_installed()
    config = job.config
    if config.batch_size % context.world_size:
        raise UsageError(f"batches of {config.batch_size} images cannot be divided evenly among {context.world_size} workers")
    key = job.key
    with torch.random.fork_rng(devices=[context.device] if context.device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        detector = build_detector(job.encoder, config, len(job.train.class_names), job.pixel_mean, job.pixel_std).to(context.device)
        trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(decay_groups(trained, config.weight_decay), _learning_rate(0, config), config.momentum)
        images = _Images(job)
        step, history = _resumed(job, key, detector, optimizer, images)
        wrapped = data_parallel(detector, context)
        if _is_measured(step, config, history) and _measure(job, detector, context, step, history, images) is None:
            return None
        sums: dict[str, Tensor] = {}
        count = 0
        for batch, targets in _training_batches(job, context, step, images):
            parts = _train_step(job, wrapped, optimizer, step, context, batch, targets)
            step, count = step + 1, count + 1
            sums = {name: sums.get(name, 0) + value for name, value in parts.items()}
            (stops,) = on_any_rank([context.stop_requested()], context)
            is_saved = stops or step == config.steps or step % config.checkpoint_every == 0
            if is_saved or step % _LOG_EVERY == 0:
                entry = {name: float(value) / count for name, value in sums.items()}
                _check_finite(entry, step, config)
                history.losses.append({"step": step} | entry)
                if context.rank == 0:
                    context.report({"step": step} | entry)
                sums, count = {}, 0
            if not stops and _is_measured(step, config, history):
                stops = _measure(job, detector, context, step, history, images) is None
            if is_saved or stops:
                images.share()
                _save(job, key, detector, optimizer, step, history, images, context)
            if stops:
                return None
        measured = _measure(job, detector, context, config.steps, history, images)
        return None if measured is None else DetectionResult(*measured, history, images.bad)


def _is_measured(step: int, config: DetectConfig, history: History) -> bool:
    """Whether the step is one of those between which `evaluate_every` steps are, and was not measured before a stop."""
    if not config.evaluate_every or step % config.evaluate_every or step == config.steps:
        return False
    return all(entry["step"] != step for entry in history.measured)


def _learning_rate(step: int, config: DetectConfig) -> float:
    """A linear warm-up, then steps down to a tenth."""
    rate = config.learning_rate * config.batch_size / REFERENCE_BATCH
    rate *= 0.1 ** sum(step >= share * config.steps for share in config.decay_at)
    return rate * min(1.0, (step + 1) / (config.warmup_steps + 1))


def _train_step(
    job: DetectionJob,
    detector: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    context: Context,
    images: list[Tensor],
    targets: list[dict[str, Tensor]],
) -> dict[str, Tensor]:
    """One update; returns the losses by the record's names."""
    torch.manual_seed(int(np.random.SeedSequence([job.config.seed, step, context.rank]).generate_state(1)[0]))
    for group in optimizer.param_groups:
        group["lr"] = _learning_rate(step, job.config)
    device = context.device
    parts = detector(
        [image.to(device).float().div_(255) for image in images],
        [{name: value.to(device) for name, value in target.items()} for target in targets],
    )
    loss = torch.stack(list(parts.values())).sum()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return {"loss": loss.detach()} | {LOSSES[name]: value.detach() for name, value in parts.items()}


def _check_finite(entry: dict[str, float], step: int, config: DetectConfig) -> None:
    if not all(math.isfinite(value) for value in entry.values()):
        raise DivergedError(
            f"the detector has diverged by step {step:,} (loss {entry['loss']}); lower learning_rate={config.learning_rate:g}"
        )


def _training_batches(
    job: DetectionJob, context: Context, first: int, images: _Images
) -> Iterator[tuple[list[Tensor], list[dict[str, Tensor]]]]:
    """This process's images and targets of each step from `first` on, decoded ahead by threads."""
    config, share = job.config, job.config.batch_size // context.world_size
    places = ((step, context.rank * share + place) for step in range(first, config.steps) for place in range(share))
    with ThreadPoolExecutor(_THREADS) as pool:
        samples = ahead(lambda at: pool.submit(_training_sample, job, *at, images), places, _AHEAD * share)
        while batch := [future.result() for future in itertools.islice(samples, share)]:
            yield [image for image, _ in batch], [target for _, target in batch]


def _training_sample(job: DetectionJob, step: int, place: int, images: _Images) -> tuple[Tensor, dict[str, Tensor]]:
    """Image number `place` of a step's batch, mirrored half of the time.

    Raises:
        UsageError: none of the train images can be decoded, or too many cannot.
    """
    epoch, at = divmod(step * job.config.batch_size + place, len(job.train))
    order = np.roll(_order(job.config.seed, epoch, len(job.train)), -at).tolist()
    row, image = next(((row, image) for row in order if (image := images.pixels("train", row)) is not None), (0, None))
    if image is None:
        raise UsageError(f"none of the {len(job.train):,} train images can be decoded")
    truth = job.train.truths[row]
    boxes = torch.from_numpy(truth.boxes.astype(np.float32))
    if np.random.default_rng([job.config.seed, step, place]).random() < 0.5:
        image, boxes = mirrored(image, boxes)
    return image, {"boxes": boxes, "labels": torch.from_numpy(truth.labels + 1)}


def _order(seed: int, epoch: int, num: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num)


def mirrored(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """An image (3, H, W) with left and right exchanged, and its boxes (B, 4)."""
    width = image.shape[2]
    return image.flip(2), torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)


def _measure(
    job: DetectionJob, detector: FasterRCNN, context: Context, step: int, history: History, images: _Images
) -> tuple[DetectionSet, list[Detections]] | None:
    """The test images that can be decoded, and the detections of all processes in them; AP goes into the history. None after a requested
    stop.

    Raises:
        UsageError: none of the test images can be decoded, or too many cannot.
    """
    mine = range(context.rank, len(job.test), context.world_size)
    found = {row: one for part in gather_objects(detect_images(detector, images, mine, job.config, context)) for row, one in part.items()}
    images.share()
    if any(on_any_rank([context.stop_requested()], context)):
        return None
    if not found:
        raise UsageError(f"none of the {len(job.test):,} test images can be decoded")
    rows = sorted(found)
    tested, detections = job.test.take(rows), [found[row] for row in rows]
    if context.rank == 0:
        entry = {"step": step} | average_precision(detections, tested.truths)
        history.measured.append(entry)
        context.report({"measured_step": float(step)} | {name: value for name, value in entry.items() if name != "step"})
    return tested, detections


@torch.inference_mode()
def detect_images(
    detector: FasterRCNN, images: _Images, rows: Sequence[int], config: DetectConfig, context: Context
) -> dict[int, Detections]:
    """The detections in these test images, by their places, without images that cannot be decoded; not of all after a requested stop."""
    found: dict[int, Detections] = {}
    with ThreadPoolExecutor(_THREADS) as pool, _test_mode(detector, config):
        pixels = ahead(lambda row: (row, pool.submit(images.pixels, "test", row)), rows, _AHEAD * _TEST_BATCH)
        readable = ((row, image) for row, started in pixels if (image := started.result()) is not None)
        while not context.stop_requested() and (batch := list(itertools.islice(readable, _TEST_BATCH))):
            outputs = detector([image.to(context.device).float().div_(255) for _, image in batch])
            for (row, _), output in zip(batch, outputs, strict=True):
                boxes, labels, scores = (output[name].cpu().numpy() for name in ("boxes", "labels", "scores"))
                found[row] = Detections(boxes, labels - 1, scores)
            context.report({"tested": float(len(batch))})
    return found


@contextmanager
def _test_mode(detector: FasterRCNN, config: DetectConfig) -> Iterator[None]:
    """Within the block the detector is in evaluation mode and uses the test size."""
    detector.eval()
    resize: Any = detector.transform
    train_px, resize.min_size = resize.min_size, (config.test_px,)
    try:
        yield
    finally:
        resize.min_size = train_px
        detector.train()


def _save(
    job: DetectionJob,
    key: str,
    detector: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    history: History,
    images: _Images,
    context: Context,
) -> None:
    if context.rank == 0:
        buffer = io.BytesIO()
        state = {"key": key, "step": step, "detector": detector.state_dict(), "optimizer": optimizer.state_dict()}
        bad = {split: [asdict(row) for row in rows] for split, rows in images.bad.items()}
        torch.save(state | {"losses": history.losses, "measured": history.measured, "bad": bad}, buffer)
        storage.write_bytes(job.checkpoint, buffer.getvalue())


def _resumed(job: DetectionJob, key: str, detector: nn.Module, optimizer: torch.optim.Optimizer, images: _Images) -> tuple[int, History]:
    """The step to continue from, after loading its checkpoint, or 0 if there is no checkpoint of this job."""
    if not storage.exists(job.checkpoint):
        return 0, History()
    state = read_state_file(job.checkpoint)
    if state.get("key") != key:
        log.warning("%s belongs to another detection job (other settings, data or weights); starting again.", job.checkpoint)
        return 0, History()
    detector.load_state_dict(state["detector"])
    optimizer.load_state_dict(state["optimizer"])
    images.add({split: [BadRow(**row) for row in rows] for split, rows in state["bad"].items()})
    return state["step"], History(state["losses"], state["measured"])
