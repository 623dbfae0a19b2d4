"""What the verb `evaluate` does and prints."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ray_sassl.config.overrides import apply_overrides, explain, parse_override
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.evaluation import Evaluation, Predictions, Score, Task
from ray_sassl.evaluation.datasets import EvaluationData, load_evaluation_data
from ray_sassl.evaluation.protocols import ProtocolConfig
from ray_sassl.evaluation.results import read_scores
from ray_sassl.evaluation.store import FeatureStore
from ray_sassl.evaluation.subject import EncoderSubject, RawPixels, untrained_backbone
from ray_sassl.evaluation.workplace import LocalWorkplace, Workplace
from ray_sassl.experiments import data_root
from ray_sassl.files import storage
from ray_sassl.plugins import UsageError, did_you_mean, load_plugin, plugin_names
from ray_sassl.train.checkpoint import Checkpoint

_PROTOCOLS = "ray_sassl.evaluation.protocols"
_SHARES = ("top1", "top5", "per_class", "share", "accuracy", "AP", "AP50", "AP75")
FOLDER, FEATURES, DETECT = "evaluation", "features", "detect"
ALL = "all"
"""In the place of a protocol's name: every protocol whose images are there."""


def evaluate(
    console: Console,
    run: str,
    words: list[str],
    *,
    baselines: bool = False,
    out: str | None = None,
    keep_features: bool = True,
    actors: int | None = None,
    actor_cpus: float = 1.0,
    actor_gpus: float | None = None,
    address: str | None = None,
) -> int:
    """Judge the newest checkpoint by each protocol; print tables, and write JSON, predictions and pictures.

    What goes wrong with one of several protocols is told, and the others go on. Returns the exit code: 1 where a protocol failed.

    Args:
        words: Names of protocols, or `all`, and `path=value` changes, which belong to the protocols that have such a field, or else to the run's
            config; beside `all`, `detect.data` names a data set to detect on, and `detect.FIELD` its settings.
        out: The folder for the results.
        keep_features: Whether to keep features beside the run, and use those that are there.
        actors: How many, if the work is to be done on a pool of them.
    """
    from ray_sassl.runs.directory import find_checkpoint
    from ray_sassl.runs.process import load_backbone

    checkpoint = find_checkpoint(run)
    wants_all = ALL in words
    words, boxes, changes = _detection(words)
    protocols, rest = parse_protocols(with_all_named(words))
    config, backbone = load_backbone(checkpoint)
    config = apply_overrides(config, rest)
    skipped: dict[str, str] = {}
    if wants_all:
        protocols, skipped = _possible(protocols, config)
    data = None if all(protocol.brings_images for protocol in protocols) else load_evaluation_data(config)
    base = storage.join(_run_dir_of(checkpoint.path), FOLDER)
    out = out or storage.join(base, f"step-{checkpoint.step:08d}")
    folder = storage.join(base, FEATURES) if keep_features else None
    found: dict[str, dict[str, Evaluation]] = {}
    failed: dict[str, str] = {}
    logging.getLogger(_PROTOCOLS).setLevel(logging.INFO)
    with _workplace(actors, actor_cpus, actor_gpus, address) as workplace:
        store = FeatureStore(folder, {"checkpoint": checkpoint.path, "step": checkpoint.step}) if folder is not None else None
        subjects = {f"step {checkpoint.step:,}": EncoderSubject(backbone, config, data, workplace, store)}
        if baselines:
            store = FeatureStore(folder, {"untrained, of seed": config.seed}) if folder is not None else None
            subjects["untrained encoder"] = EncoderSubject(untrained_backbone(config), config, data, workplace, store)
            subjects["raw pixels"] = EncoderSubject(RawPixels(), config, data, workplace)
        for protocol in protocols:
            own = None if protocol.brings_images else data
            try:
                evaluations = _judged(console, protocol, subjects, config, has_pool=workplace.is_remote)
                path = _write(out, protocol, evaluations, checkpoint, config, own)
            except Exception as error:
                if len(protocols) == 1:
                    raise
                failed[protocol.name] = _told(console, protocol.name, error)
                continue
            found[protocol.name] = evaluations
            console.print(scores_table(protocol.name, {protocol.name: evaluations}, own.chance if own is not None else None))
            console.print(f"Scores: {path}", soft_wrap=True, highlight=False)
    if wants_all and boxes is None:
        skipped[DETECT] = f"there is no VOCdevkit in {data_root()}; detect.data=FOLDER names another data set of VOC's form"
    elif boxes is not None:
        from ray_sassl.cli.detection import detect

        try:
            found[DETECT] = detect(console, run, boxes, changes, baselines=baselines, out=out, worker_cpus=actor_cpus, address=address)
        except Exception as error:  # noqa: BLE001 - told, as for the others
            failed[DETECT] = _told(console, DETECT, error)
    if wants_all:
        console.print(scores_table("all protocols", found, data.chance if data is not None else None))
        for name, reason in skipped.items():
            console.print(f"[dim]{name} was left out:[/] {escape(reason)}", soft_wrap=True, highlight=False)
    for name, reason in failed.items():
        console.print(f"[bold red]{name} failed:[/] {escape(reason)}", soft_wrap=True, highlight=False)
    if data is not None and data.num_bad:
        console.print(f"[yellow]{data.num_bad:,} images could not be decoded and were left out[/]")
    return 1 if failed else 0


def _detection(words: list[str]) -> tuple[list[str], str | None, list[str]]:
    """As of `split_detection`, with the usual data set where `all` is wanted, none is named and that one is there."""
    left, boxes, settings = split_detection(words)
    usual = storage.join(data_root(), "VOCdevkit")
    if boxes is None and ALL in words and storage.exists(usual):
        boxes = usual
    if settings and boxes is None:
        raise UsageError(f"{DETECT}.{settings[0]} has no effect: there is no {usual}, and detect.data=FOLDER is not given")
    return left, boxes, settings


def split_detection(words: list[str]) -> tuple[list[str], str | None, list[str]]:
    """The words without those that begin with `detect.`, the data set to detect on where they name one, and its settings.

    Raises:
        UsageError: there are such words, and not every protocol is wanted.
    """
    own = [word.removeprefix(f"{DETECT}.") for word in words if word.startswith(f"{DETECT}.")]
    if own and ALL not in words:
        raise UsageError(
            f"{DETECT}.{own[0]} belongs to `evaluate RUN all`; detection by itself is `ray-sassl detect RUN DATA [PATH=VALUE]...`"
        )
    boxes = next((word.removeprefix("data=") for word in own if word.startswith("data=")), None)
    return [word for word in words if not word.startswith(f"{DETECT}.")], boxes, [word for word in own if not word.startswith("data=")]


def evaluate_what_is_missing(console: Console, run: str, words: list[str]) -> list[str]:
    """Judge the run by those of the protocols that it has no scores of, or scores with other settings than the words give; returns all names.

    Args:
        words: As for `evaluate`.
    """
    named = parse_protocols(with_all_named(words))[0]
    known = {scores.protocol: scores.settings for scores in read_scores(run)}
    missing = [protocol for protocol in named if not _is_known(protocol, known.get(protocol.name))]
    if missing:
        there = {protocol.name for protocol in missing}
        console.print(f"Judging {run} by {', '.join(sorted(there))}", soft_wrap=True, highlight=False)
        names = [ALL] if ALL in words and len(missing) == len(named) else sorted(there)
        fields = {name for protocol in missing for name in type(protocol).model_fields}
        others = {name for protocol in named for name in (protocol.name, *type(protocol).model_fields)} - there - fields
        evaluate(
            console, run, [*names, *(word for word in words if "=" in word and parse_override(word)[0].partition(".")[0] not in others)]
        )
    return [protocol.name for protocol in named]


def _is_known(protocol: ProtocolConfig, settings: dict[str, Any] | None) -> bool:
    """Whether there are scores, with these settings where any was given."""
    if settings is None:
        return False
    return protocol == type(protocol)() or settings == {"name": protocol.name, **protocol.model_dump(mode="json")}


def with_all_named(words: list[str]) -> list[str]:
    """The words with every protocol's name in the place of `all`.

    Raises:
        UsageError: a protocol is named beside it.
    """
    if ALL not in words:
        return words
    if named := [word for word in words if "=" not in word and word != ALL]:
        raise UsageError(f"all means every protocol, so leave out {', '.join(named)}")
    return [*plugin_names(_PROTOCOLS), *(word for word in words if word != ALL)]


def _possible(protocols: list[ProtocolConfig], config: ExperimentConfig) -> tuple[list[ProtocolConfig], dict[str, str]]:
    """Those whose images are there, and why each of the others cannot be done.

    Raises:
        UsageError: none can.
    """
    unset = [f"evaluate.{split}" for split in ("train", "test") if getattr(config.evaluate, split) is None]
    reasons: dict[str, str | None] = {}
    for protocol in protocols:
        own = f"{' and '.join(unset)} not set" if unset else None
        reasons[protocol.name] = protocol.absent_images() if protocol.brings_images else own
    possible = [protocol for protocol in protocols if reasons[protocol.name] is None]
    skipped = {name: reason for name, reason in reasons.items() if reason is not None}
    if not possible:
        raise UsageError("no protocol has its images: " + "; ".join(f"{name}: {reason}" for name, reason in skipped.items()))
    return possible, skipped


def _judged(
    console: Console, protocol: ProtocolConfig, subjects: dict[str, EncoderSubject], config: ExperimentConfig, *, has_pool: bool
) -> dict[str, Evaluation]:
    """What the protocol finds of each encoder."""
    evaluations: dict[str, Evaluation] = {}
    for name, subject in subjects.items():
        console.print(f"{protocol.name}: {name} ...", style="dim", highlight=False)
        evaluations[name] = _evaluated(subject, protocol, config, has_pool=has_pool)
    return evaluations


def _told(console: Console, name: str, error: Exception) -> str:
    """Print what went wrong, with a traceback where it is not the user's to mend; returns it in one line."""
    if isinstance(error, UsageError):
        console.print(f"[bold red]{name}:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        return str(error)
    console.print_exception(max_frames=20)
    return f"{type(error).__name__}: {error}"


def _evaluated(subject: EncoderSubject, protocol: ProtocolConfig, config: ExperimentConfig, *, has_pool: bool) -> Evaluation:
    """What the protocol finds: in this process, or on one actor of a pool where it trains the encoder itself."""
    train, test = config.evaluate.train, config.evaluate.test
    if has_pool and protocol.sees_encoder and train is not None and test is not None:
        return subject.evaluate([Task(protocol, train, test)])[0]
    return protocol.build().evaluate(subject)


def parse_protocols(words: list[str]) -> tuple[list[ProtocolConfig], list[str]]:
    """The protocols that the words name, with the words' changes to them, and the words that are for the run's config.

    `k=20` changes every named protocol that has a field `k`, `knn.k=20` only kNN.

    Raises:
        UsageError: no protocol is named, one of them is not known, or a field does not take its value.
    """
    names = [word for word in words if "=" not in word]
    if DETECT in names:
        raise UsageError("detection has a verb of its own, since it needs boxes: ray-sassl detect RUN DATA [PATH=VALUE]...")
    if not names:
        known = plugin_names(_PROTOCOLS)
        raise UsageError(f"name at least one protocol, or {ALL}: {', '.join(known)}")
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"{', '.join(sorted(twice))} is named twice")
    configs = {name: load_plugin(_PROTOCOLS, name).Config for name in names}
    fields: dict[str, dict] = {name: {} for name in names}
    rest = []
    for word in (word for word in words if "=" in word):
        path, value = parse_override(word)
        first, dot, field = path.partition(".")
        if first in configs and dot:
            if field not in configs[first].model_fields:
                near = did_you_mean(field, configs[first].model_fields)
                raise UsageError(f"{first} has no field {field!r}{near}. Its fields: {', '.join(configs[first].model_fields)}.")
            fields[first][field] = value
        elif having := [name for name in names if path in configs[name].model_fields]:
            for name in having:
                fields[name][path] = value
        else:
            rest.append(word)
    protocols = []
    for name in names:
        try:
            protocols.append(configs[name](**fields[name]))
        except ValidationError as error:
            raise UsageError(f"{name}: {explain(error)}") from error
    return protocols, rest


@contextmanager
def _workplace(actors: int | None, cpus: float, gpus: float | None, address: str | None) -> Iterator[Workplace]:
    """Actors if a cluster is named, actors are asked for, or this machine has several GPUs; else this process."""
    import torch

    from ray_sassl.orchestrate.runtime.progress import progress_bar

    with ExitStack() as until_the_end:
        if actors is None and not address and not os.environ.get("RAY_ADDRESS") and torch.cuda.device_count() < 2:
            yield LocalWorkplace(progress=progress_bar)
            return
        from ray_sassl.orchestrate.batch.actor_pool import ActorPoolConfig
        from ray_sassl.orchestrate.batch.features import evaluation_pool
        from ray_sassl.orchestrate.runtime.autoscaler import offered
        from ray_sassl.orchestrate.runtime.session import ray_session

        until_the_end.enter_context(ray_session(address))
        if gpus is None:
            gpus = 1.0 if offered("GPU") >= 1 else 0.0
        config = ActorPoolConfig(num_actors=actors, num_cpus=cpus, num_gpus=gpus)
        yield until_the_end.enter_context(evaluation_pool(config, progress_bar))


def scores_table(title: str, found: dict[str, dict[str, Evaluation]], chance: float | None) -> Table:
    """A column an encoder, a line a score; by protocol, which are named where there are several."""
    encoders = list(dict.fromkeys(name for evaluations in found.values() for name in evaluations))
    several = len(found) > 1
    has_notes = any(evaluation.notes for evaluations in found.values() for evaluation in evaluations.values())
    columns = [*(["protocol"] if several else []), "score", *encoders, *(["of"] if has_notes else [])]
    table = Table(*columns, title=f"{title}, 95 % intervals in brackets", title_justify="left")
    has_top1 = False
    for protocol, evaluations in found.items():
        names = dict.fromkeys(name for evaluation in evaluations.values() for name in evaluation.scores)
        notes = {name: note for evaluation in evaluations.values() for name, note in evaluation.notes.items()}
        has_top1 |= any(name.endswith("top1") for name in names)
        for number, name in enumerate(names):
            figures = (_figure(name, evaluations[encoder].scores.get(name) if encoder in evaluations else None) for encoder in encoders)
            note = [notes.get(name, "")] if has_notes else []
            table.add_row(*([protocol if number == 0 else ""] if several else []), name, *figures, *note)
    if chance is not None and has_top1:
        table.add_row(*([""] if several else []), "chance (top1)", *[f"{chance:.1%}"] * len(encoders))
    return table


def _figure(name: str, score: Score | None) -> str:
    if score is None:
        return ""
    scale, digits = (100, 2) if name.endswith(_SHARES) else (1, 4)
    unit = "%" if scale == 100 else ""
    value = f"{score.value * scale:.{digits}f}{unit}"
    if score.low is None or score.high is None:
        return value
    return f"{value} [{score.low * scale:.{digits}f}, {score.high * scale:.{digits}f}]"


def _write(
    out: str,
    protocol: ProtocolConfig,
    evaluations: dict[str, Evaluation],
    checkpoint: Checkpoint,
    config: ExperimentConfig,
    data: EvaluationData | None,
) -> str:
    """`PROTOCOL.json`, and beside it the first encoder's pictures `PROTOCOL-NAME.png` and predictions `PROTOCOL.parquet`; returns the first."""
    first = next(iter(evaluations.values()))
    files = {}
    for name, content in first.figures.items():
        files[name] = f"{protocol.name}-{name}.png"
        storage.write_bytes(storage.join(out, files[name]), content)
    if first.predictions is not None:
        files["predictions"] = f"{protocol.name}.parquet"
        storage.write_bytes(storage.join(out, files["predictions"]), _parquet(first.predictions))
    record = {
        "checkpoint": checkpoint.path,
        "step": checkpoint.step,
        "protocol": {"name": protocol.name, **protocol.model_dump(mode="json")},
        "data": config.evaluate.model_dump(mode="json") if data is not None else None,
        "bad_images": data.num_bad if data is not None else None,
        "chance": data.chance if data is not None else None,
        "scores": {name: {key: asdict(score) for key, score in found.scores.items()} for name, found in evaluations.items()},
        "details": {name: found.details for name, found in evaluations.items()},
        "files": files,
    }
    path = storage.join(out, f"{protocol.name}.json")
    storage.write_text(path, json.dumps(record, indent=2))
    return path


def _parquet(predictions: Predictions) -> bytes:
    table = pa.table({"sample_id": predictions.sample_id, "label": predictions.labels, "predicted": predictions.predicted})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def _run_dir_of(checkpoint: str) -> str:
    return storage.parent(storage.parent(checkpoint))
