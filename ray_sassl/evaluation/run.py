"""The evaluation of one encoder, and optionally of baselines, by several protocols."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from ray_sassl.config.schema import EvaluatedConfig
from ray_sassl.evaluation import Evaluation, Score, Task
from ray_sassl.evaluation.datasets import EvaluationData
from ray_sassl.evaluation.protocols import PROTOCOLS, ProtocolConfig
from ray_sassl.evaluation.results import STARTING_POINT, read_evaluations, read_scores, write_scores
from ray_sassl.evaluation.store import FeatureStore
from ray_sassl.evaluation.subject import EncoderSubject, RawPixels, untrained_backbone
from ray_sassl.evaluation.workplace import Workplace
from ray_sassl.files import storage
from ray_sassl.files.json_files import read_json
from ray_sassl.plugins import load_plugin, plugin_names
from ray_sassl.process.errors import UsageError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluatedEncoder:
    """An encoder and where it comes from.

    Attributes:
        network: (B, 3, S, S) -> (B, F).
        config: The config of its training, or what is known of it, with the evaluation data to use.
        checkpoint: Path or URI of its checkpoint or its file, or the name of published weights.
        step: The checkpoint's step; None without a run.
        start: The encoder that the run has started from, where its weights were not random.
        part: Which network and layer of the run it is, such as "teacher-projector.0"; empty for the student's features.
    """

    network: nn.Module
    config: EvaluatedConfig
    checkpoint: str
    step: int | None = None
    start: nn.Module | None = None
    part: str = ""

    @property
    def name(self) -> str:
        """The name that distinguishes it from baselines."""
        if self.step is None:
            return self.config.name
        return f"step {self.step:,}" + (f", {self.part.replace('-', ' ')}" if self.part else "")


@dataclass
class EvaluationResult:
    """The results of several protocols.

    Attributes:
        evaluations: Results by protocol and encoder; the run's own encoder is the first.
        paths: The files of scores, by protocol.
        failures: Why protocols failed, in one line each, by protocol.
        skipped: Why protocols were not run, by protocol.
        num_bad: Images of `evaluate.train` and `evaluate.test` that could not be decoded.
    """

    evaluations: dict[str, dict[str, Evaluation]] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    num_bad: int = 0

    @property
    def scores(self) -> dict[str, dict[str, Score]]:
        """The scores of the run's own encoder, by protocol and name."""
        return {protocol: next(iter(evaluations.values())).scores for protocol, evaluations in self.evaluations.items()}


@dataclass(frozen=True)
class Started:
    """A protocol begins to evaluate an encoder."""

    protocol: str
    encoder: str


@dataclass(frozen=True)
class Finished:
    """A protocol has evaluated all encoders, and its scores are in a file."""

    protocol: str
    evaluations: dict[str, Evaluation]
    path: str


@dataclass(frozen=True)
class Failed:
    """A protocol has failed, and the others continue."""

    protocol: str
    error: Exception


Event = Started | Finished | Failed


def protocol_configs(protocols: Sequence[str | ProtocolConfig]) -> list[ProtocolConfig]:
    """The protocols' configs; a name stands for its protocol's defaults.

    Raises:
        UsageError: no protocol has the name, or one is named twice.
    """
    configs = [load_plugin(PROTOCOLS, one).Config() if isinstance(one, str) else one for one in protocols]
    names = [config.name for config in configs]
    if not names:
        raise UsageError(f"name at least one protocol: {', '.join(plugin_names(PROTOCOLS))}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"{', '.join(twice)} is named twice")
    return configs


def with_images(protocols: Sequence[ProtocolConfig], config: EvaluatedConfig) -> tuple[list[ProtocolConfig], dict[str, str]]:
    """The protocols whose images exist, and why each of the others cannot run.

    Raises:
        UsageError: none can.
    """
    unset = [f"evaluate.{split}" for split in ("train", "test") if getattr(config.evaluate, split) is None]
    own = f"{' and '.join(unset)} not set" if unset else None
    reasons = {protocol.name: protocol.absent_images() if protocol.brings_images else own for protocol in protocols}
    skipped = {name: reason for name, reason in reasons.items() if reason is not None}
    if len(skipped) == len(protocols):
        raise UsageError("no protocol has its images: " + "; ".join(f"{name}: {reason}" for name, reason in skipped.items()))
    return [protocol for protocol in protocols if protocol.name not in skipped], skipped


def without_scores(protocols: Sequence[ProtocolConfig], run_dir: str) -> list[ProtocolConfig]:
    """The protocols without scores in the run. For a protocol with default settings, scores with any settings count."""
    known = {scores.protocol: scores.settings for scores in read_scores(run_dir)[0]}

    def has_scores(protocol: ProtocolConfig) -> bool:
        if protocol.name not in known:
            return False
        return protocol == type(protocol)() or known[protocol.name] == {"name": protocol.name, **protocol.model_dump(mode="json")}

    return [protocol for protocol in protocols if not has_scores(protocol)]


def evaluate(
    encoder: EvaluatedEncoder,
    protocols: Sequence[ProtocolConfig],
    data: EvaluationData | None,
    workplace: Workplace,
    *,
    out: str,
    features: str | None = None,
    baselines: bool = False,
    watch: Callable[[Event], None] = lambda event: None,
) -> EvaluationResult:
    """Evaluate the encoder by each protocol and write the scores. If one of several protocols fails, the others continue. After a stop the
    same call goes on with those that are not done.

    Args:
        data: The images of `evaluate.train` and `evaluate.test`; None if all protocols bring their own.
        workplace: Where the expensive parts are computed.
        out: The folder for scores, figures and predictions.
        features: A folder that keeps features for later evaluations; None keeps none.
        baselines: Whether to evaluate the untrained encoder and raw pixels too.
        watch: Called with each event.
    """
    subjects = _subjects(encoder, data, workplace, features, baselines=baselines)
    result = EvaluationResult()
    done = _Done.read(out)
    for protocol in protocols:
        own = None if protocol.brings_images else data
        key = _key(encoder, protocol, own, list(subjects))
        if (known := done.evaluations(protocol.name, key)) is not None:
            result.evaluations[protocol.name], result.paths[protocol.name] = known, storage.join(out, f"{protocol.name}.json")
            log.info("%s was done before the stop", protocol.name)
            watch(Finished(protocol.name, known, result.paths[protocol.name]))
            continue
        try:
            evaluations = {}
            for name, subject in subjects.items():
                watch(Started(protocol.name, name))
                evaluations[name] = _evaluation(subject, protocol, encoder.config, workplace)
            path = write_scores(
                out,
                protocol.name,
                protocol.model_dump(mode="json"),
                evaluations,
                checkpoint=encoder.checkpoint,
                step=encoder.step,
                data=encoder.config.evaluate.model_dump(mode="json") if own is not None else None,
                num_bad=own.num_bad if own is not None else None,
            )
        except Exception as error:
            if len(protocols) == 1:
                raise
            result.failures[protocol.name] = in_one_line(error)
            watch(Failed(protocol.name, error))
            continue
        result.evaluations[protocol.name], result.paths[protocol.name] = evaluations, path
        if protocol is not protocols[-1]:
            done.add(protocol.name, key)
        watch(Finished(protocol.name, evaluations, path))
    done.forget()
    result.num_bad = data.num_bad if data is not None else 0
    return result


@dataclass(frozen=True)
class _Done:
    """The protocols of an evaluation that are done, in a file that is there until all are.

    Attributes:
        path: The file.
        keys: A digest of what each was done with, by protocol.
    """

    path: str
    keys: dict[str, str]

    @classmethod
    def read(cls, out: str) -> _Done:
        path = storage.join(out, ".unfinished.json")
        try:
            tree = read_json(path) or {}
        except UsageError:
            tree = {}
        return cls(path, {name: key for name, key in tree.items() if isinstance(key, str)})

    def evaluations(self, protocol: str, key: str) -> dict[str, Evaluation] | None:
        """The results of a protocol that was done with the same key before."""
        return read_evaluations(storage.parent(self.path), protocol) if self.keys.get(protocol) == key else None

    def add(self, protocol: str, key: str) -> None:
        self.keys[protocol] = key
        storage.write_text(self.path, json.dumps(self.keys))

    def forget(self) -> None:
        if self.keys:
            storage.remove(self.path)


def _key(encoder: EvaluatedEncoder, protocol: ProtocolConfig, data: EvaluationData | None, names: list[str]) -> str:
    """sha256 of what the results of a protocol depend on."""
    parts = [] if data is None else [data.train.index.fingerprint, data.test.index.fingerprint]
    facts = [protocol.name, protocol.model_dump(mode="json"), encoder.config.evaluate.model_dump(mode="json")]
    return hashlib.sha256(json.dumps([encoder.checkpoint, encoder.step, names, parts, facts]).encode()).hexdigest()


def in_one_line(error: Exception) -> str:
    """The error's message, with its type unless it is a `UsageError`."""
    return str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"


def _subjects(
    encoder: EvaluatedEncoder, data: EvaluationData | None, workplace: Workplace, features: str | None, *, baselines: bool
) -> Mapping[str, EncoderSubject]:
    def store(**facts: object) -> FeatureStore | None:
        return FeatureStore(features, facts) if features is not None else None

    config = encoder.config
    kept = store(checkpoint=encoder.checkpoint, step=encoder.step)
    subjects = {encoder.name: EncoderSubject(encoder.network, config, data, workplace, kept)}
    if encoder.start is not None:  # whether the run was worth it
        kept = store(**{"starting point of": encoder.checkpoint})
        subjects[STARTING_POINT] = EncoderSubject(encoder.start, config, data, workplace, kept)
    if baselines:
        kept = store(**{"untrained, of seed": config.seed})
        subjects["untrained encoder"] = EncoderSubject(untrained_backbone(config), config, data, workplace, kept)
        subjects["raw pixels"] = EncoderSubject(RawPixels(), config, data, workplace)
    return subjects


def _evaluation(subject: EncoderSubject, protocol: ProtocolConfig, config: EvaluatedConfig, workplace: Workplace) -> Evaluation:
    """Run the protocol in this process, or on a remote workplace if the protocol trains the encoder."""
    train, test = config.evaluate.train, config.evaluate.test
    if workplace.is_remote and protocol.sees_encoder and train is not None and test is not None:
        return subject.evaluate([Task(protocol, train, test)])[0]
    return protocol.build().evaluate(subject)
