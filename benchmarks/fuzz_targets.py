"""What is fuzzed: a reader of the product, valid inputs to begin from, and what may come of it."""

from __future__ import annotations

import contextlib
import io
import json
import random
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.fuzz_inputs import Files
from ray_sassl.data import DataConfig
from ray_sassl.data.decode import DecodeError, decode, decode_rows, image_size
from ray_sassl.data.index import Index
from ray_sassl.data.quarantine import BadRow, Quarantine
from ray_sassl.data.reading import build_index, read_groups
from ray_sassl.files.cache import cache_dir
from ray_sassl.files.json_files import read_json, read_json_lines
from ray_sassl.process.errors import UsageError

MAX_PIXELS = 1_000_000
OWN_ERRORS = (UsageError, DecodeError)


@dataclass(frozen=True)
class Target:
    """A reader and what it is given.

    Attributes:
        name: In tables.
        seeds: Makes valid cases; called once.
        read: Reads the case in a folder; says in a word or two what came of it. It may raise `OWN_ERRORS` and nothing else.
        needs: Modules that it imports, and that take long.
        is_native: Whether a library reads the bytes first that may end the process, so that only a process of its own is safe.
    """

    name: str
    seeds: Callable[[], list[Files]]
    read: Callable[[Path], str]
    is_native: bool = False
    needs: tuple[str, ...] = ()


def encoded(format_: str, mode: str = "RGB", size: tuple[int, int] = (20, 16), **options: Any) -> bytes:
    """A small noisy image."""
    pixels = random.Random(f"{format_} {mode}").randbytes(size[0] * size[1] * 4)
    out = io.BytesIO()
    Image.frombytes("RGBA", size, pixels).convert(mode).save(out, format_, **options)
    return out.getvalue()


def _images() -> list[Files]:
    modes = {"JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGB", "P", "RGBA", "L", "1", "LA"), "WEBP": ("RGB", "RGBA")}
    made = [encoded(format_, mode) for format_ in modes for mode in modes[format_]]
    made += [encoded("JPEG", progressive=True), encoded("WEBP", lossless=True)]
    return [{"image.bin": content} for content in made]


def _read_image(folder: Path) -> str:
    content = (folder / "image.bin").read_bytes()
    image_size(content)
    return f"image {decode(content, MAX_PIXELS).mode}"


def _tars() -> list[Files]:
    def make(format_: int, names: Iterable[str]) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=format_) as tar:
            for number, name in enumerate(names):
                for ending, content in (("jpg", encoded("JPEG", size=(8, 8))), ("cls", str(number % 3).encode()), ("json", b"{}")):
                    info = tarfile.TarInfo(f"{name}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        return out.getvalue()

    plain, dotted, long = ["a", "b", "c"], ["d/2024-05-01.cam1.1", "._x", "ü"], ["x" * 150 + str(number) for number in range(3)]
    formats = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    return [{"x.tar": make(format_, names)} for format_ in formats for names in (plain, dotted)] + [
        {"x.tar": make(tarfile.GNU_FORMAT, long)},
        {"x.tar": make(tarfile.PAX_FORMAT, long)},
    ]


def _parquets() -> list[Files]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [encoded("PNG", size=(8, 8)) for _ in range(6)]
    columns = {
        "plain": {"image": images, "label": [0, 1, 2, 0, 1, 2]},
        "struct": {"image": [{"bytes": image, "path": None} for image in images], "label": [0, 1, 2, 0, 1, 2]},
    }
    cases = []
    for values in columns.values():
        out = io.BytesIO()
        pq.write_table(pa.table(values), out, row_group_size=4)
        cases.append({"x.parquet": out.getvalue()})
    return cases


def _read_shard(name: str) -> Callable[[Path], str]:
    def read(folder: Path) -> str:
        config = DataConfig(path=str(folder / name), max_pixels=MAX_PIXELS, max_bad_fraction=1)
        index = build_index(config, num_threads=2)
        return _all_rows(index)

    return read


def _all_rows(index: Index) -> str:
    num_bad = 0
    for group in range(min(index.num_groups, 20)):
        rows = read_groups(index, [group])
        num_bad += sum(isinstance(image, BadRow) for image in decode_rows(rows, MAX_PIXELS, lambda image: image))
    return "rows, some bad" if num_bad else "rows"


def _indexes() -> list[Files]:
    """Of shards that stay where they are, in the cache folder, while the index is changed."""
    made = []
    shards = cache_dir() / "fuzz"
    for name, case in (("x.tar", _tars()[0]), ("x.parquet", _parquets()[0])):
        write_case(case, shards)
        build_index(DataConfig(path=str(shards / name), max_bad_fraction=1)).save(shards / "index.arrow")
        made.append({"index.arrow": (shards / "index.arrow").read_bytes()})
    return made


def _read_index(folder: Path) -> str:
    index = Index.load(folder / "index.arrow")
    assert isinstance(index.fingerprint, str)
    index.changed_files()
    return _all_rows(index)


def _configs() -> list[Files]:
    from ray_sassl.config.files import to_yaml
    from ray_sassl.experiments import experiments, load_experiment

    return [{"config.yaml": to_yaml(load_experiment(name)).encode()} for name in sorted(experiments())[:12]]


def _read_config(folder: Path) -> str:
    from ray_sassl.config.files import from_yaml, read_config, to_yaml

    config = read_config(str(folder / "config.yaml"))
    assert from_yaml(to_yaml(config)) == config
    return "config"


_SPACE = """experiment: demo_plain
about: mine
parameters:
- {kind: float, path: optim.base_lr, low: 0.01, high: 1.0, log: true}
- {kind: choice, path: method, choices: [simclr, byol]}
- {kind: interval, path: sassl.alpha, low: [0.0, 0.5], width: [0.1, 0.5]}
- {kind: int, path: train.epochs, low: 1, high: 3, when: {method: [byol]}}
overrides: [train.epochs=1]
objectives: [knn_top1, "images_per_s:max"]
searcher: random
"""


def _read_space(folder: Path) -> str:
    from ray_sassl.api.search import make_study

    study = make_study(str(folder / "space.yaml"))
    assert study.num_trials >= 1
    return "study"


def _lines() -> list[Files]:
    quarantine = [{"path": "x.tar", "row": number, "sample_id": number, "reason": "damaged: no"} for number in range(5)]
    metrics = [{"step": step, "loss": 1 / step, "knn_top1": 0.5} for step in range(1, 6)]
    return [{"lines.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode()} for lines in (quarantine, metrics)]


def _read_lines(folder: Path) -> str:
    from ray_sassl.train.metrics import MetricsLog, TrackingConfig

    path = folder / "lines.jsonl"
    Quarantine(100, 1.0).load_jsonl(str(path))
    found = read_json_lines(str(path))
    path.rename(folder / "metrics.jsonl")
    MetricsLog(str(folder), TrackingConfig(tensorboard=False), {}, resume_step=3).close()
    return "lines, some damaged" if found.num_damaged else "lines"


def _read_json(folder: Path) -> str:
    return "object" if read_json(str(folder / "x.json")) is not None else "no object"


def _banks() -> list[Files]:
    import tempfile

    from ray_sassl.style.bank import StyleBank

    with tempfile.TemporaryDirectory() as folder:
        StyleBank.of(np.random.default_rng(0).normal(size=(5, 6)), list("abcde"), "color_statistics").save(f"{folder}/bank.safetensors")
        return [{"bank.safetensors": (Path(folder) / "bank.safetensors").read_bytes()}]


def _read_bank(folder: Path) -> str:
    from ray_sassl.style.bank import StyleBank

    bank = StyleBank.load(folder / "bank.safetensors")
    bank.codes[bank.pick(np.array([0.0, 0.99]))]
    bank.gaussian_codes(np.zeros((2, len(bank.mean))))
    return "bank"


def _annotations() -> list[Files]:
    box = (
        "<object><name>dog</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
    )
    xml = f"<annotation><size><width>20</width><height>16</height></size>{box}</annotation>"
    files: Files = {}
    for name, split in (("a", "trainval"), ("b", "test")):
        files |= {f"JPEGImages/{name}.jpg": encoded("JPEG"), f"Annotations/{name}.xml": xml.encode()}
        files[f"ImageSets/Main/{split}.txt"] = f"{name}\n".encode()
    return [files]


def _read_annotations(folder: Path) -> str:
    from ray_sassl.evaluation.detection.voc import read_voc

    train, _ = read_voc(str(folder), ["trainval"], ["test"])
    return f"{train.num_boxes} boxes" if train.num_boxes < 3 else "boxes"


def _definitions() -> list[Files]:
    folder = Path(__file__).parents[1] / "cluster"
    names = ("aws.yaml", "gcp.yaml", "kuberay/base/raycluster.yaml", "kuberay/job/rayjob.yaml")
    return [{"cluster.yaml": (folder / name).read_bytes()} for name in names]


def _read_definition(folder: Path) -> str:
    from ray_sassl.orchestrate.runtime.definitions import check_files

    findings = check_files([str(folder / "cluster.yaml")], None)
    return "findings" if any(findings.values()) else "no findings"


def _run_directory() -> list[Files]:
    """Of a run that has finished and was evaluated, without the training."""
    import tempfile

    from ray_sassl.config.files import to_yaml
    from ray_sassl.config.overrides import apply_overrides
    from ray_sassl.data.seen import SeenIds
    from ray_sassl.experiments import load_experiment
    from ray_sassl.runs.process import build_method
    from ray_sassl.train.checkpoint import write_checkpoint

    changes = ["name=run", "backbone.name=resnet20", "method={name: simclr, embedding_size: 8}", "views.size_px=16", "train.epochs=1"]
    config = apply_overrides(load_experiment("demo_plain"), changes)
    method = build_method(config)
    predictions = io.BytesIO()
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"sample_id": [0, 1, 2], "label": [0, 1, 2], "predicted": [0, 1, 1]}), predictions)
    score = {"value": 0.5, "low": 0.4, "high": 0.6, "is_share": True, "chance": 0.3}
    knn = {
        "protocol": {"k": 20},
        "step": 7,
        "scores": {"encoder": {"knn_top1": score}, "untrained": {"knn_top1": score}},
        "files": {"predictions": "knn.parquet", "confusion": "knn.png"},
        "details": {"encoder": {"classes": ["a", "b"]}},
        "data": {"train": {"path": "x"}, "test": {"path": "y"}},
    }
    environment = {"python": "3.11", "commit": "c0ffee", "packages": {"torch": "2.9"}, "gpus": [], "command": ["x"]}
    summary = {"status": "finished", "step": 7, "run_dir": "run", "checkpoint": "x", "metrics": {"loss": 1.0}, "reason": None}
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(folder, 7, method.state_dict(), {"num_rows": 60}, SeenIds(60), to_yaml(config), keep=1)
        build_index(config.data).save(f"{folder}/index.arrow")
        made = {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
    return [
        made
        | {
            "config.yaml": to_yaml(config).encode(),
            "environment.json": json.dumps(environment).encode(),
            "summary.json": json.dumps(summary).encode(),
            "metrics.jsonl": _lines()[1]["lines.jsonl"],
            "quarantine.jsonl": _lines()[0]["lines.jsonl"],
            "views.png": encoded("PNG", size=(40, 80)),
            "evaluation/step-00000007/knn.json": json.dumps(knn).encode(),
            "evaluation/step-00000007/knn.parquet": predictions.getvalue(),
            "evaluation/step-00000007/knn.png": encoded("PNG"),
        }
    ]


def _read_run_directory(folder: Path) -> str:
    """By `report`, `compare`, `export` and `pretrain --resume`; one that refuses does not hide what another one does."""
    from ray_sassl.config.files import read_config
    from ray_sassl.exporting.encoder import load_encoder
    from ray_sassl.runs.directory import prepare_run_dir
    from ray_sassl.runs.pages.comparing import compare
    from ray_sassl.runs.pages.comparison_page import write_comparison
    from ray_sassl.runs.pages.run_page import write_run_report
    from ray_sassl.runs.record import read_run

    run = str(folder)

    def compare_with_itself() -> None:
        write_comparison(compare([read_run(run), read_run(run)]), str(folder / "comparison"))

    verbs: dict[str, Callable[[], object]] = {
        "report": lambda: write_run_report(run, str(folder / "page.html")),
        "compare": compare_with_itself,
        "export": lambda: load_encoder(run),
        "resume": lambda: prepare_run_dir(read_config(f"{run}/config.yaml"), run, resume=True),
    }
    done = []
    for name, verb in verbs.items():
        try:
            verb()
            done.append(name)
        except OWN_ERRORS:
            continue
        except FileNotFoundError as error:  # the config itself, which the command line asks for first
            if not str(error.filename or error).endswith("config.yaml") and "config.yaml" not in str(error):
                raise
    return "all verbs" if len(done) == len(verbs) else f"{len(done)} of {len(verbs)} verbs"


def _study_directory() -> list[Files]:
    import tempfile

    from ray_sassl.api.search import make_study
    from ray_sassl.config.files import to_yaml
    from ray_sassl.study.record import Evaluation, TrialRecord, open_study, write_tables, write_trial

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "space.yaml").write_text(_SPACE)
        study = make_study(f"{folder}/space.yaml", trials=4, objectives=["knn_top1"])
        study_dir = f"{folder}/study"
        open_study(study, study_dir, resume=False)
        trials = []
        for number in range(4):
            point = study.space.draw(study.base, lambda dimension, share=number / 4: dimension.at(share))
            curve = [Evaluation(each, {"knn_top1": 0.1 * each + 0.05 * number, "step": each, "epoch": each}, 1.0) for each in (1, 2, 3)]
            trials.append(TrialRecord(number, point, "finished" if number else "failed", curve, "x" if not number else None, 1, 3.0))
            write_trial(study_dir, trials[-1])
        write_tables(study, study_dir, trials)
        kept = ("study.yaml", "trial.json")
        made = {str(p.relative_to(study_dir)): p.read_bytes() for p in Path(study_dir).rglob("*") if p.name in kept}
        return [made | {"trials/0001/config.yaml": to_yaml(study.base).encode(), "trials/0001/views.png": encoded("PNG", size=(40, 80))}]


def _read_study_directory(folder: Path) -> str:
    """By `search report` and `search --resume`."""
    from ray_sassl.api.search import report_study
    from ray_sassl.study.record import open_study, read_study

    result = report_study(str(folder))
    with contextlib.suppress(UsageError):
        open_study(read_study(str(folder)), str(folder), resume=True)
    return f"{len(result.trials)} trials"


_PAGES = ("ray_sassl.exporting.encoder", "ray_sassl.runs.pages.comparison_page", "ray_sassl.runs.pages.run_page", "matplotlib.pyplot")

TARGETS = (
    Target("image", _images, _read_image),
    Target("tar shard", _tars, _read_shard("x.tar")),
    Target("config", _configs, _read_config, needs=("ray_sassl.config.files",)),
    Target("search space", lambda: [{"space.yaml": _SPACE.encode()}], _read_space, needs=("ray_sassl.api.search",)),
    Target("JSON lines", _lines, _read_lines),
    Target("JSON", lambda: [{"x.json": json.dumps({"a": [1, {"b": None}], "c": "x"}).encode()}], _read_json),
    Target("style bank", _banks, _read_bank),
    Target("annotations", _annotations, _read_annotations),
    Target("cluster definition", _definitions, _read_definition, needs=("ray_sassl.orchestrate.runtime.definitions",)),
    Target("Parquet shard", _parquets, _read_shard("x.parquet"), is_native=True),
    Target("index", _indexes, _read_index, is_native=True),
    Target("run directory", _run_directory, _read_run_directory, is_native=True, needs=_PAGES),
    Target("study directory", _study_directory, _read_study_directory, needs=("ray_sassl.api.search",)),
)


def write_case(files: Files, folder: Path) -> None:
    """Put the files of a case into a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
