"""Evidence that accumulates: tables of encoders in a folder that any later run, machine or GPU adds seeds and longer budgets to.

    python -m benchmarks.evidence dose --folder evidence --seeds 5 --seen 25000 [--data ../shared/data] [--minutes 110]
    python -m benchmarks.evidence fa --folder evidence --seeds 5 --seen 25000
    python -m benchmarks.evidence resnet18 --folder evidence --seeds 1 --seen 10000000 --shards 8 --batch 128 --cpus 0      (a GPU)
    python -m benchmarks.evidence dose --folder evidence --show

*dose*: MoCo v2 with no style, the papers', medium and strong style, and two controls of the strong one: without the partner's style
(alpha = 0), and colors alone at an equal dose. On CIFAR-10 and on the clothing set; judged on clean images (kNN, linear probe) and, by the
probe, in unseen styles, under corruptions and by shape against texture. *fa*: BYOL and SimSiam with nearest neighbors, four masks with the
free loss, and interpolation, against controls with the same losses. *resnet18*: SimCLR, MoCo v2 and BYOL, plain, with alpha = 0, SASSL, FA
and both; `--seen 10000000` are the 200 epochs of lightly's benchmark, whose kNN top-1 are 84.7, 83.8 and 86.9 %.

A run's folder is named by its table, its cell, the digest of all that decides its scores (where data lie does not) and its seed: equal
digests are seeds of one cell, whichever machine trained them. A folder that has scores is kept; one that was stopped (`--minutes`, Ctrl-C)
is continued; one that another machine holds is left to it. Strengths of equal dose are measured once and kept in the folder. Runs are tasks
of one thread on their own Ray, as many as there are CPUs; `--cpus 0` does them in this process, with its GPU if there is one.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet as pq
import ray
import torch
import typer
from ray.exceptions import RayError
from rich.console import Console

from ray_sassl.config.files import from_yaml, to_yaml
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data.reading import build_index
from ray_sassl.evaluation.protocols import ProtocolConfig
from ray_sassl.evaluation.protocols.knn import Config as Knn
from ray_sassl.evaluation.protocols.linear import Config as Linear
from ray_sassl.evaluation.protocols.robustness import Config as Robustness
from ray_sassl.evaluation.protocols.robustness import unused_stylizer
from ray_sassl.evaluation.results import read_scores
from ray_sassl.evaluation.run import PROTOCOLS
from ray_sassl.experiments import load_experiment
from ray_sassl.files import storage
from ray_sassl.files.lock import FolderInUseError, hold_folder
from ray_sassl.files.paths import with_absolute_paths
from ray_sassl.orchestrate.ablation import evaluate_missing
from ray_sassl.orchestrate.pretraining.launch import pretrain
from ray_sassl.orchestrate.runtime.session import ray_session
from ray_sassl.plugins import load_plugin
from ray_sassl.runs.directory import has_begun
from ray_sassl.runs.dose import style_pixels
from ray_sassl.runs.dosing import matched, measure
from ray_sassl.runs.pictures import read_block
from ray_sassl.runs.process import build_style_augmentation
from ray_sassl.runs.record import RunRecord, read_run
from ray_sassl.study.ablation_table import lines_as_markdown, lines_of

STRENGTHS = "strengths.json"
DATA = {"cifar10": ("cifar10/train-0000[0-{last}].parquet", "cifar10/test-00000.parquet"),
        "clothing": ("transfer/clothing/train-*.parquet", "transfer/clothing/test-*.parquet")}  # fmt: skip
_SEED_FREE = ("name", "seed", "evaluate", "stream", "scaling", "tracking", "fault")
"""Parts of a config that say where a run is carried out, not what it computes."""


@dataclass(frozen=True)
class Cell:
    """One row of a table.

    Attributes:
        experiment: Its experiment.
        overrides: Changes to it.
        against: The rows that it is compared with.
        dose_of: A row whose dose it is given with its own stylizer.
    """

    experiment: str
    overrides: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    dose_of: str | None = None


def _style(alpha: str, beta: str, stylizer: str = "swift") -> tuple[str, ...]:
    return f"stylize={stylizer}", f"sassl.alpha={alpha}", f"sassl.beta={beta}"


_MOCO, _NONE = "moco_cifar10_cpu", ("none",)
DOSE = {
    "none": Cell(_MOCO),
    "papers'": Cell(_MOCO, _style("[0.1, 0.3]", "[0.1, 0.3]"), _NONE),
    "medium": Cell(_MOCO, _style("[0.3, 0.6]", "[0.3, 0.6]"), _NONE),
    "strong, alpha = 0": Cell(_MOCO, _style("[0, 0]", "[0.5, 1.0]"), _NONE),
    "colors, dose of strong": Cell(_MOCO, _style("[0.5, 1.0]", "[0.5, 1.0]", "color_statistics"), _NONE, dose_of="strong"),
    "strong": Cell(_MOCO, _style("[0.5, 1.0]", "[0.5, 1.0]"), ("none", "strong, alpha = 0", "colors, dose of strong")),
}
_FREE = ("method.fa.num_samples=4", "method.fa.reduction=free")


def _with_fa(method: str) -> dict[str, Cell]:
    name, fa = f"{method}_cifar10_cpu", "method.fa.augmentation="
    control, controls = f"{method}, control", f"{method}, control x 4"
    return {
        control: Cell(name, (f"{fa}control",)),
        f"{method}, nearest": Cell(name, (f"{fa}{{name: nearest, support_size: 4096}}",), (control,)),
        f"{method}, interpolate": Cell(name, (f"{fa}interpolate",), (control,)),
        controls: Cell(name, (f"{fa}control", *_FREE), (control,)),
        f"{method}, mask x 4 free": Cell(name, (f"{fa}mask", *_FREE), (controls, control)),
    }


def _resnet18(method: str) -> dict[str, Cell]:
    style = _style("[0.1, 0.3]", "[0.1, 0.3]")
    return {
        f"{method}, plain": Cell(f"{method}_cifar10"),
        f"{method}, alpha = 0": Cell(f"{method}_cifar10", _style("[0, 0]", "[0.1, 0.3]"), (f"{method}, plain",)),
        f"{method}, SASSL": Cell(f"{method}_cifar10", style, (f"{method}, plain", f"{method}, alpha = 0")),
        f"{method}, FA control": Cell(f"{method}_fa_cifar10", ("method.fa.augmentation=control",), (f"{method}, plain",)),
        f"{method}, FA": Cell(f"{method}_fa_cifar10", (), (f"{method}, FA control",)),
        f"{method}, both": Cell(f"{method}_fa_cifar10", style, (f"{method}, plain", f"{method}, FA control")),
    }


TABLES: dict[str, dict[str, Cell]] = {
    "dose": DOSE,
    "fa": _with_fa("byol") | _with_fa("simsiam"),
    "resnet18": {name: cell for method in ("simclr", "moco", "byol") for name, cell in _resnet18(method).items()},
}
ON = {"dose": ("cifar10", "clothing"), "fa": ("cifar10",), "resnet18": ("cifar10",)}


@dataclass(frozen=True)
class Budget:
    """What each run has.

    Attributes:
        seen: Images that it sees, over all epochs; a tenth of them is warm-up.
        shards: Shards of CIFAR-10, 6,250 images each.
        batch: Images of a step.
        test_rows: CIFAR-10's test images to be judged on.
    """

    seen: int
    shards: int
    batch: int
    test_rows: int


@dataclass(frozen=True)
class Run:
    """One cell with one seed.

    Attributes:
        place: Its folder.
        config: What is trained.
        protocols: What the encoder is judged by.
    """

    place: str
    config: ExperimentConfig
    protocols: tuple[ProtocolConfig, ...]


def runs_of(
    table: str, folder: Path, data: Path, budget: Budget, seeds: int, protocols: tuple[ProtocolConfig, ...], sets: Sequence[str] = ()
) -> Iterator[tuple[str, str, Run]]:
    """The data set, the cell and the run of each, seed by seed, so that a table that is stopped has all cells."""
    configs = {on: dict(_configs(table, on, folder, data, budget)) for on in sets or ON[table]}
    for seed in range(seeds):
        for on, of_cells in configs.items():
            for cell, config in of_cells.items():
                digest = digest_of(config, protocols)
                place = folder / table / on / f"{_word(cell)}-{digest}" / f"seed-{seed}"
                yield on, cell, Run(str(place), apply_overrides(config, [f"seed={seed}"]), protocols)


def digest_of(config: ExperimentConfig, protocols: tuple[ProtocolConfig, ...]) -> str:
    """Of all that decides a run's scores but its seed: equal digests are one cell, on any machine."""
    return hashlib.sha256(json.dumps(deciding(config, protocols), sort_keys=True).encode()).hexdigest()[:12]


def deciding(config: ExperimentConfig, protocols: tuple[ProtocolConfig, ...]) -> dict[str, Any]:
    """What decides a run's scores but its seed, without fields that are younger than the first results and have the value of before, so
    that their cells go on."""
    tree: dict[str, Any] = config.model_dump(mode="json")
    kept = {part: value for part, value in tree.items() if part not in _SEED_FREE}
    kept["data"] |= {"path": [Path(path).name for path in config.data.paths], "cache_gb": None}
    kept["test"] = [Path(path).name for path in config.evaluate.test.paths] if config.evaluate.test else []
    kept["size_px"] = config.evaluate.size_px
    kept["judged"] = [{"name": one.name, **one.model_dump(mode="json", exclude={"device", "bank"})} for one in protocols]
    for view in ("left", "right", "small"):
        if kept["views"][view]["colors"] == "torchvision":
            del kept["views"][view]["colors"]
    return kept


def _configs(table: str, on: str, folder: Path, data: Path, budget: Budget) -> Iterator[tuple[str, ExperimentConfig]]:
    train, test = DATA[on]
    train = f"{data}/{train.format(last=budget.shards - 1)}"
    held = _part(next(data.glob(test)), folder, budget.test_rows)
    configs: dict[str, ExperimentConfig] = {}
    for name, cell in TABLES[table].items():
        common = [
            f"data.path={train}",
            f"evaluate.train={{path: '{train}'}}",
            f"evaluate.test={{path: '{held}'}}",
            "evaluate.final_test=false",
        ]
        common += [
            f"train.global_batch={budget.batch}",
            "scaling.num_workers=0",
            "scaling.threads_per_worker=1",
            "tracking.tensorboard=false",
        ]
        config = apply_overrides(load_experiment(cell.experiment), [*common, *cell.overrides])
        epochs = round(budget.seen / build_index(config.data).num_rows, 4)
        configs[name] = with_absolute_paths(apply_overrides(config, [f"train.epochs={epochs}", f"optim.warmup_epochs={epochs / 10}"]))
    for name, cell in TABLES[table].items():
        if cell.dose_of is not None:
            configs[name] = _with_dose(configs[name], configs[cell.dose_of], f"{table}, {on}, {name}", folder)
        yield name, configs[name]


def _with_dose(config: ExperimentConfig, like: ExperimentConfig, key: str, folder: Path) -> ExperimentConfig:
    """The config at the dose of another one; strengths that the folder has are kept, so that the cell stays the same."""
    path = folder / STRENGTHS
    known = json.loads(path.read_text()) if path.exists() else {}
    if key not in known:
        block = read_block(like)[1]
        pixels = style_pixels(measure(like, block, build_style_augmentation(like, "cpu", 1)))
        known[key] = matched(config, block, config.stylize.name, pixels)
        path.write_text(json.dumps(known, indent=2))
    return apply_overrides(config, known[key])


def _part(test: Path, folder: Path, rows: int) -> Path:
    """The first rows of a test set, as a file in the folder; all of a smaller one."""
    path = folder / f"{test.parent.name}-{test.stem}-{rows}.parquet"
    if not path.exists():
        pq.write_table(pq.read_table(test)[:rows], path, row_group_size=500)
    return path


def _word(cell: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in cell).strip("-")


def work(config_yaml: str, place: str, protocols: list[dict[str, Any]], until: float) -> str:
    """Train or continue one run, and judge it; returns how it went."""
    torch.set_num_threads(1)
    configs = [load_plugin(PROTOCOLS, fields.pop("name")).Config(**fields) for fields in map(dict, protocols)]
    stop = threading.Event()
    timer = threading.Timer(max(0.0, until - time.time()), stop.set)
    timer.daemon = True
    try:
        with hold_folder(place, "evidence"):
            timer.start()
            begun = has_begun(place)
            result = pretrain(from_yaml(config_yaml), place, resume=begun, data_moved=begun, stop=stop)
            if result.status != "finished":
                return f"stopped at step {result.step}"
            evaluate_missing(place, configs, actors=0, keep_features=False)
            storage.remove(storage.join(place, "checkpoints"))
    except FolderInUseError:
        return "is done by another command"
    finally:
        timer.cancel()
    return "done"


def is_done(run: Run) -> bool:
    """Whether the run has scores by all protocols."""
    return {protocol.name for protocol in run.protocols} <= {scores.protocol for scores in read_scores(run.place)[0]}


def do_all(todo: Mapping[str, Run], cpus: int | None, until: float, console: Console) -> list[str]:
    """Do the runs until the time is up; returns those that failed."""
    arguments = {
        key: (to_yaml(run.config), run.place, [{"name": one.name, **one.model_dump(mode="json")} for one in run.protocols], until)
        for key, run in todo.items()
    }
    failed = []
    if cpus == 0:
        for key, of_run in arguments.items():
            if time.time() < until:
                console.print(f"{key}: {work(*of_run)}", markup=False)
        return failed
    with ray_session(num_cpus=cpus):
        task = ray.remote(num_cpus=1)(_work_in_time)
        keys = {task.remote(*of_run): key for key, of_run in arguments.items()}
        while keys:
            (done,), _ = ray.wait(list(keys))
            key = keys.pop(done)
            try:
                console.print(f"{key}: {ray.get(done)}; {len(keys)} left", markup=False)
            except RayError as error:
                failed.append(key)
                console.print(f"{key} failed: {error}", markup=False)
    return failed


def _work_in_time(config_yaml: str, place: str, protocols: list[dict[str, Any]], until: float) -> str:
    return work(config_yaml, place, protocols, until) if time.time() < until else "waits for the next call"


def show(table: str, folder: Path) -> str:
    """All that the folder has of a table, as a document: data set by data set, and budget by budget."""
    budgets: dict[tuple[str, float, int, int], dict[str, list[RunRecord]]] = {}
    names = {_word(name): name for name in TABLES[table]}
    for place in sorted((folder / table).glob("*/*/seed-*")):
        cell = names.get(place.parent.name.rpartition("-")[0])
        if cell is None or not read_scores(str(place))[0]:
            continue
        run = read_run(str(place))
        train = run.part("train")
        budget = (place.parts[-3], float(train["epochs"]), int(train["global_batch"]), len(run.part("data")["path"]))
        budgets.setdefault(budget, {}).setdefault(cell, []).append(run)
    document = [f"# {table}"]
    for (on, epochs, batch, _), runs in sorted(budgets.items()):
        runs = {name: runs.get(name, []) for name in TABLES[table]}
        document += ["", f"# {table} on {on}: {epochs:g} epochs, batch {batch}"]
        lines = [line for name, cell in TABLES[table].items() for line in lines_of(name, cell.against, runs)]
        document += lines_as_markdown(lines)
    return "\n".join(document) + "\n"


class Table(StrEnum):
    """The tables."""

    dose = "dose"
    fa = "fa"
    resnet18 = "resnet18"


def main(
    table: Table,
    folder: Annotated[Path, typer.Option(help="Results of all calls.")] = Path("evidence"),
    data: Annotated[Path, typer.Option(help="Folder with cifar10/ and transfer/clothing/.")] = Path("../shared/data"),
    on: Annotated[list[str] | None, typer.Option(help="Data sets of the table; all where not given.")] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 5,
    seen: Annotated[int, typer.Option(min=1, help="Images that a run sees, over all epochs.")] = 25_000,
    shards: Annotated[int, typer.Option(min=1, max=8, help="Of CIFAR-10, 6,250 training images each.")] = 2,
    batch: Annotated[int, typer.Option(min=1)] = 128,
    test_rows: Annotated[int, typer.Option(min=10, help="Test images to be judged on.")] = 2500,
    cpus: Annotated[int | None, typer.Option(min=0, help="Runs at a time; all CPUs where not given; 0: in this process.")] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="After this time runs save a checkpoint and end; the next call continues.")] = 1e6,
    bank: Annotated[str | None, typer.Option(help="Bank of paintings for unseen styles; else the test images give the styles.")] = None,
    stylizer: Annotated[str | None, typer.Option(help="That of unseen styles, which no cell was trained with.")] = None,
    only_show: Annotated[bool, typer.Option("--show", help="Only print what there is.")] = False,
) -> None:
    console = Console()
    folder.mkdir(parents=True, exist_ok=True)
    if not only_show:
        protocols = judges(table.value, stylizer, bank)
        budget = Budget(seen, shards, batch, test_rows)
        runs = list(runs_of(table.value, folder.absolute(), data.absolute(), budget, seeds, protocols, on or ()))
        todo = {f"{on}, {cell}, {Path(run.place).name}": run for on, cell, run in runs if not is_done(run)}
        console.print(f"{table.value}: {len(todo)} of {len(runs)} runs to do")
        failed = do_all(todo, cpus, time.time() + 60 * minutes, console)
        if failed:
            console.print(f"{len(failed)} runs failed: {', '.join(failed)}; call again to try them once more")
    document = show(table.value, folder)
    (folder / f"{table.value}.md").write_text(document)
    console.print(document, markup=False, soft_wrap=True)


def judges(table: str, stylizer: str | None = None, bank: str | None = None) -> tuple[ProtocolConfig, ...]:
    """What encoders are judged by; the stylizer of unseen styles is the same for all cells."""
    clean = (Knn(), Linear())
    if table == "fa":
        return clean
    used = {
        override.removeprefix("stylize=")
        for cell in TABLES[table].values()
        for override in cell.overrides
        if override.startswith("stylize=")
    }
    unseen = load_plugin("ray_sassl.style.stylizers", stylizer).Config() if stylizer else unused_stylizer(*used)
    return (*clean, Robustness(stylize=unseen, bank=bank, severities=(3,)))


if __name__ == "__main__":
    typer.run(main)
