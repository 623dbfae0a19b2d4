"""Commands as jobs on a cluster: what one would read, write and hold is found without running it. `submit_job` sends one."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data import DataConfig
from ray_sassl.files import storage
from ray_sassl.orchestrate.jobs.checks import JobCommand, check_place
from ray_sassl.process.errors import UsageError
from ray_sassl.style.stylizers import StylizerConfig

if TYPE_CHECKING:
    from ray_sassl.api.jobs import SubmitResult

_GO_ON = "--resume-if-begun"


def submit_job(
    command: Sequence[str],
    *,
    name: str | None = None,
    working_dir: str = ".",
    env: Mapping[str, str] | None = None,
    env_from_secret: Sequence[str] = (),
    cluster: str | None = None,
    max_upload_mb: float = 100.0,
    address: str | None = None,
    dry_run: bool = False,
) -> SubmitResult:
    """Send a command to a cluster, after checks that it can run there.

    Args:
        command: The arguments of `ray-sassl` on the command line, such as `["pretrain", "moco_imagenet", "--run-dir", "s3://..."]`.
        name: The same name again continues the job; by default it is made from the command and its output path.
        working_dir: Folder that is sent with the job, without files that Git ignores.
        env: Environment variables of the job; no secrets.
        env_from_secret: Secrets for its environment, which do not stand in its record: `NAME`, a variable of this process, or `secret/NAME`
            or `secret/NAMESPACE/NAME`, all keys of a Kubernetes Secret.
        cluster: Definition of an autoscaling cluster, which gives its maximum size.
        max_upload_mb: Refuse larger uploads.
        address: Address of the cluster's job API. By default RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265.
        dry_run: Check everything and send nothing; the cluster need not answer.

    Raises:
        UsageError: the command is wrong or cannot run as a job, its data are missing, the cluster is too small, or it holds a secret.
        JobError: the cluster does not answer or refuses.
    """
    from ray_sassl.api.jobs import submit

    options = {"name": name, "working_dir": working_dir, "env": env, "cluster": cluster, "max_upload_mb": max_upload_mb, "address": address}
    return submit(command, read_command, **options, secrets=env_from_secret, dry_run=dry_run)


def read_command(words: list[str]) -> JobCommand:
    """Find out what the command with these words after `ray-sassl` would do.

    Raises:
        UsageError: the command cannot run as a job, or has an error: an unknown experiment, path or option, or a place that no other node
            has.
    """
    if not words:
        raise UsageError(f"give the command after `--`, as in: -- pretrain EXPERIMENT --run-dir s3://...; {_known()}")
    verb, given = _parse(words)
    if verb not in _READERS:
        raise UsageError(f"{verb!r} does not run as a job; {_known()}")
    if given.get("address") is not None:
        raise UsageError("leave --address out of the command: a job runs on the cluster that it is sent to")
    return _READERS[verb](words, given)


def _known() -> str:
    return f"the verbs that do: {', '.join(name.removesuffix(' run') for name in _READERS)}"


def _parse(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The verb and its arguments, parsed by our own command line."""
    from ray_sassl.cli import app

    command, names, left, context = typer.main.get_command(app), [], words, None
    try:
        while True:
            context = command.make_context(names[-1] if names else "ray-sassl", list(left), parent=context)
            if not hasattr(command, "resolve_command"):
                return " ".join(names), context.params
            group: Any = command
            # The words that remain for the group's commands; the names of the two parts have changed between versions of Click.
            name, command, left = group.resolve_command(context, [*context._protected_args, *context.args])
            names.append(name)
    except typer.Exit:
        raise UsageError(f"`{shlex.join(words)}` shows a help text; leave --help out of a job's command") from None
    except Exception as error:
        if not hasattr(error, "format_message"):  # Click's errors of usage have it, and Typer has a Click of its own
            raise
        raise UsageError(f"the command `{shlex.join(words)}` is wrong: {error.format_message()}") from error  # type: ignore[attr-defined]


def _pretrain(words: list[str], given: dict[str, Any]) -> JobCommand:
    from ray_sassl.cli.pretraining import split_run_dir
    from ray_sassl.runs.configs import load_config
    from ray_sassl.runs.files import CONFIG
    from ray_sassl.train.config import micro_batch

    experiment = given["experiment"]
    overrides, run_dir = split_run_dir(given["overrides"] or [], given["run_dir"])
    config = load_config(experiment, overrides)
    micro_batch(config.train, max(1, config.scaling.num_workers))
    if run_dir is None and storage.exists(storage.join(experiment, CONFIG)):
        run_dir = experiment
    if run_dir is None:
        raise UsageError("a job's run directory must last longer than its node: give --run-dir s3://..., or a path that all nodes share")
    check_place(run_dir, "--run-dir")
    return JobCommand(
        "pretrain",
        words if given["resume"] or given["resume_if_begun"] else [*words, _GO_ON],
        run_dir,
        config=config,
        data=_data_of(config),
        files=_experiment_file(experiment) | _files_of(config),
        notes=_weights_note(config.stylize),
    )


def _search(words: list[str], given: dict[str, Any]) -> JobCommand:
    from ray_sassl.api.search import make_study

    if given["study_dir"] is None:
        raise UsageError(
            "a job's study directory must last longer than its node: give --study-dir s3://..., or a path that all nodes share"
        )
    check_place(given["study_dir"], "--study-dir")
    wishes = {name: given[name] for name in ("experiment", "overrides", "trials", "searcher", "scheduler", "grace", "strict")}
    base = make_study(given["space"], **wishes, objectives=given["objective"] or ()).base
    space = {"the search space": given["space"]} if given["space"].endswith((".py", ".yaml", ".yml")) else {}
    return JobCommand(
        "search",
        words if given["resume"] or given["resume_if_begun"] else [*words, _GO_ON],
        given["study_dir"],
        config=base,
        data=_data_of(base),
        files=_experiment_file(given["experiment"] or "") | space | _files_of(base),
        notes=_weights_note(base.stylize),
    )


def _ablation(words: list[str], given: dict[str, Any]) -> JobCommand:
    from ray_sassl.experiments.ablations import load_ablation
    from ray_sassl.study.ablation import base_of

    if given["study_dir"] is None:
        raise UsageError(
            "a job's study directory must last longer than its node: give --study-dir s3://..., or a path that all nodes share"
        )
    check_place(given["study_dir"], "--study-dir")
    wishes = {"size": given["size"].value, "experiment": given["experiment"], "overrides": given["overrides"]}
    base, _ = base_of(load_ablation(given["name"]), **wishes)
    table = {"the ablation": given["name"]} if given["name"].endswith(".py") else {}
    files = _experiment_file(given["experiment"] or "") | table | _files_of(base)
    notes = _weights_note(base.stylize)
    return JobCommand("ablation", words, given["study_dir"], config=base, data=_data_of(base), files=files, notes=notes)


def _evaluate(words: list[str], given: dict[str, Any]) -> JobCommand:
    from ray_sassl.cli.protocol_words import parse_protocols, split_detection, with_all_named
    from ray_sassl.config.overrides import apply_overrides
    from ray_sassl.evaluation.detection import DetectConfig
    from ray_sassl.runs.configs import load_config
    from ray_sassl.runs.files import CONFIG

    run = given["run"]
    check_place(run, "the run to evaluate")
    what, boxes, settings = split_detection(given["what"])
    _, changes = parse_protocols(with_all_named(what))
    apply_overrides(DetectConfig(), settings)
    data: dict[str, DataConfig] = {}
    notes = []
    if storage.exists(storage.join(run, CONFIG)):
        data = {name: one for name, one in _data_of(load_config(run, changes)).items() if name != "data"}
    elif storage.is_uri(run):
        raise UsageError(f"{run} has no run and no checkpoint (no {CONFIG})")
    else:
        notes.append(f"{run} is not on this machine, so only the cluster can find out whether it has a run")
    if given["out"] is not None:
        check_place(given["out"], "--out")
    actors = _actors(given["actors"] or 1, given["actor_cpus"], given["actor_gpus"] or 0.0)
    files = {"detect.data": boxes} if boxes is not None else {}
    return JobCommand("evaluate", words, given["out"] or run, data=data, files=files, actors=actors, notes=notes)


def _stylize_dataset(words: list[str], given: dict[str, Any]) -> JobCommand:
    from ray_sassl.api.style import style_job

    check_place(given["target"], "DST")
    config, _ = style_job(given["overrides"], given["bank"])
    location = config.stylize.weights_location()
    bank = config.sassl.bank
    files = ({"the style bank": bank} if bank is not None else {}) | ({"the stylizer's weights": location} if location is not None else {})
    actors = _actors(given["actors"] or 1, given["actor_cpus"], given["actor_gpus"])
    notes = _weights_note(config.stylize)
    return JobCommand("stylize dataset", words, given["target"], data=_source(given), files=files, actors=actors, notes=notes)


def _data_convert(words: list[str], given: dict[str, Any]) -> JobCommand:
    check_place(given["target"], "DST")
    return JobCommand("data convert", words, given["target"], data=_source(given), actors=_actors(1, 1.0, 0.0))


_READERS: dict[str, Callable[[list[str], dict[str, Any]], JobCommand]] = {
    "pretrain": _pretrain,
    "search run": _search,
    "ablation run": _ablation,
    "evaluate": _evaluate,
    "stylize dataset": _stylize_dataset,
    "data convert": _data_convert,
}


def _source(given: dict[str, Any]) -> dict[str, DataConfig]:
    column = None if given["label_column"].lower() in ("none", "null", "") else given["label_column"]
    return {"the source": DataConfig(path=given["source"], format=given["from_"], image_column=given["image_column"], label_column=column)}


def _data_of(config: ExperimentConfig) -> dict[str, DataConfig]:
    evaluate = config.evaluate
    named = {
        "data": config.data,
        "evaluate.train": evaluate.train,
        "evaluate.validation": evaluate.own_validation,
        "evaluate.test": evaluate.test,
    }
    return {f"{name}.path": data for name, data in named.items() if data is not None}


def _files_of(config: ExperimentConfig) -> dict[str, str]:
    files = {
        "sassl.bank": config.sassl.bank,
        "stylize.weights": config.stylize.weights_location(),
        "tracking.prices": config.tracking.prices,
    }
    return {name: path for name, path in files.items() if path is not None}


def _weights_note(stylize: StylizerConfig) -> list[str]:
    weights = stylize.published_weights()
    if weights is None or stylize.weights_location() is not None:
        return []
    note = (
        f"stylize={stylize.name} takes its weights from the head's cache, and only the cluster can tell whether they are there; an image "
        f"built with WEIGHTS={weights.name} has them, and stylize.weights=s3://... names a copy"
    )
    return [note]


def _experiment_file(experiment: str) -> dict[str, str]:
    is_file = experiment.endswith((".yaml", ".yml")) or (experiment != "" and Path(experiment).is_dir())
    return {"the experiment": experiment} if is_file else {}


def _actors(count: int, cpus: float, gpus: float) -> dict[str, float]:
    return {"CPU": count * cpus, "GPU": count * gpus}
