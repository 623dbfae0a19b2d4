"""Is it worth it to start from the weights of another data set? Clothing, from an encoder of CIFAR-10 against from scratch.

    python -m benchmarks.starting_point [--data ../shared/data] [--seeds 5] [--source-epochs 3] [--epochs 12]

One encoder is pretrained on CIFAR-10 in its CPU form. Then every seed pretrains on the thousand images of clothing for an equal number of
steps: from scratch, from these weights at a tenth of the rate (as a recipe does), and at the full rate. All are scored by
kNN and a linear classifier on the 240 test images, as is the starting point itself. Images are reduced to 48 px first.
"""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
from PIL import Image
from rich.console import Console

import ray_sassl
from benchmarks.measuring import RESULTS, write_results
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.evaluation.paired import mean_over_seeds, paired_difference
from ray_sassl.experiments import load_experiment
from ray_sassl.runs.record import read_run

PROTOCOLS = ["knn", "linear"]
ARMS = {
    "from scratch": (),
    "from the weights, a tenth of the rate": ("backbone.weights={source}", "optim.base_lr=0.012"),
    "from the weights, the full rate": ("backbone.weights={source}",),
}
_SHORTER_PX = 48


def main(
    data: Annotated[Path, typer.Option(help="Folder with cifar10/ and transfer/clothing/.")] = Path("../shared/data"),
    seeds: Annotated[int, typer.Option(min=1)] = 5,
    source_epochs: Annotated[float, typer.Option(min=0.1, help="Over 12,500 images of CIFAR-10.")] = 3,
    epochs: Annotated[float, typer.Option(min=0.1, help="Over the 1,000 images of clothing.")] = 12,
    out: Annotated[Path, typer.Option()] = RESULTS / "starting_point.json",
) -> None:
    console, began = Console(), time.process_time()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train, test = (_reduced(data / "transfer" / "clothing", split, folder) for split in ("train", "test"))
        common = ["scaling.num_workers=0", "scaling.threads_per_worker=1", "evaluate.train=null", "evaluate.test=null"]
        base = apply_overrides(load_experiment("simclr_cifar10_cpu"), [*common, "train.global_batch=128", "evaluate.final_test=false"])
        changes = [f"data.path={data}/cifar10/train-0000[0-1].parquet", f"train.epochs={source_epochs}"]
        source = ray_sassl.pretrain(apply_overrides(base, changes), folder / "source").run_dir
        console.print(f"source: {time.process_time() - began:.0f} CPU-seconds")
        runs: dict[str, list[str]] = {arm: [] for arm in ARMS}
        for seed in range(seeds):
            for number, (arm, own) in enumerate(ARMS.items()):
                changes = [f"data.path={train}", f"train.epochs={epochs}", f"optim.warmup_epochs={epochs / 10}", f"seed={seed}"]
                config = apply_overrides(base, [*changes, *(change.format(source=source) for change in own)])
                run_dir = ray_sassl.pretrain(config, folder / f"{number}-{seed}").run_dir
                ray_sassl.evaluate(run_dir, PROTOCOLS, train=train, test=test)
                runs[arm].append(run_dir)
            console.print(f"seed {seed}: {time.process_time() - began:.0f} CPU-seconds so far")
        table = {protocol: _compared(protocol, runs) for protocol in PROTOCOLS}
    console.print_json(data=table)
    write_results("starting_point", [], {"seeds": seeds, "source_epochs": source_epochs, "epochs": epochs, "top1": table}, out)


def _reduced(folder: Path, split: str, out: Path) -> str:
    """The split as PNG, with the shorter side of each image reduced; returns the path."""
    rows = pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob(f"{split}*.parquet"))).to_pydict()
    images = []
    for content in rows["image"]:
        image = Image.open(io.BytesIO(content), formats=["JPEG", "PNG"]).convert("RGB")
        scale = _SHORTER_PX / min(image.size)
        file = io.BytesIO()
        image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC).save(file, "PNG")
        images.append(file.getvalue())
    path = out / f"{split}.parquet"
    pq.write_table(pa.table({"image": images, "label": pa.array(rows["label"], pa.int32())}), path, row_group_size=250)
    return str(path)


def _compared(protocol: str, runs: dict[str, list[str]]) -> dict[str, dict[str, list[float]]]:
    """Top-1 of each arm over seeds, and its difference from scratch, each with the 95 % interval over images and seeds, in percent."""
    found = {arm: [next(one for one in read_run(run).scores if one.protocol == protocol) for run in dirs] for arm, dirs in runs.items()}
    hits = {arm: np.stack([one.predictions.correct for one in scores if one.predictions is not None]) for arm, scores in found.items()}
    starts = [one.start.predictions for one in found["from the weights, the full rate"] if one.start and one.start.predictions]
    hits["the weights as they are"] = starts[0].correct[None]
    table = {}
    for arm, values in hits.items():
        mean, difference = mean_over_seeds(values), paired_difference(hits["from scratch"], values)
        parts = {"top1": (mean.value, mean.low, mean.high), "minus scratch": (difference.value, difference.low, difference.high)}
        table[arm] = {name: [round(100 * float(value or 0), 1) for value in triple] for name, triple in parts.items()}
    return table


if __name__ == "__main__":
    typer.run(main)
