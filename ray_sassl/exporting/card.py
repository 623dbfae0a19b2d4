"""The card of an exported encoder: its use, training data, recipe, scores and origin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data.index import Index
from ray_sassl.evaluation.results import shown, shown_value
from ray_sassl.exporting.encoder import EncoderFacts
from ray_sassl.exporting.formats import Format
from ray_sassl.exporting.head import LinearHead
from ray_sassl.files import storage
from ray_sassl.process.console import markdown, markdown_code, one_line
from ray_sassl.runs.files import INDEX
from ray_sassl.runs.record import RunRecord

_LIBRARY: dict[Format, str] = {"torchvision": "torchvision", "timm": "timm", "hf": "timm", "onnx": "onnx", "safetensors": "ray-sassl"}
_NAMED_CLASSES = 20
_USUAL = ("student", "backbone")
_NAMED_METRICS = ("loss", "chance_loss", "knn_top1", "test_knn_top1", "embedding_std", "effective_rank")


@dataclass(frozen=True)
class CardFacts:
    """The content of a card.

    Attributes:
        facts: Facts about the encoder.
        config: The config of its training.
        format: Format of the file.
        file: Name of the file.
        code: Lines of Python that build the library's model, for `torchvision` and `timm`.
        head: The linear classifier in the file, or None.
        run: The run that it comes from, if its directory exists.
        license: The license that the user gives, or None.
    """

    facts: EncoderFacts
    config: ExperimentConfig
    format: Format
    file: str
    code: tuple[str, ...]
    head: LinearHead | None
    run: RunRecord | None
    license: str | None


def card(about: CardFacts) -> str:
    """The card in Markdown; it begins with the fields that model hubs read."""
    config = about.config
    # People search for names such as moco or resnet18.
    tags = ["image-feature-extraction", "self-supervised", config.method.name, about.facts.backbone.name.rpartition("/")[2]]
    front = {"license": about.license or "other", "library_name": _LIBRARY[about.format], "tags": tags}
    title = f"{about.facts.backbone.name} pretrained without labels by {config.method.name}"
    head = f", with a linear classifier of {about.head.layer.out_features} classes on top" if about.head else ""
    intro = (
        f"An image encoder, (B, 3, {about.facts.size_px}, {about.facts.size_px}) to (B, {about.facts.num_features}){head}. "
        f"It comes from the experiment `{about.facts.experiment}`, {about.facts.step:,} optimizer updates in."
    )
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n# {title}\n\n{intro}",
        f"## Use\n\n{_use(about)}",
        f"## Training\n\n{_table(_recipe(about))}",
        f"## How good it is\n\n{_quality(about)}",
        f"## Where it comes from\n\n{_table(_origin(about))}",
        f"## License\n\n{_license(about)}",
    ]
    return "\n\n".join(parts) + "\n"


def _use(about: CardFacts) -> str:
    facts, has_head = about.facts, about.head is not None
    output = "logits" if has_head else "features"
    load = f'model.load_state_dict(safetensors.torch.load_file("{about.file}"), strict=True)'
    match about.format:
        case "safetensors":
            lines = [
                "import ray_sassl",
                f'encoder = ray_sassl.load_encoder("{about.file}")',
                "features = encoder(encoder.preprocess(image)[None])  # a PIL image, an array or a path",
                *(["logits = encoder.head(features)"] if has_head else []),
            ]
        case "onnx":
            outputs = "features, logits" if has_head else "(features,)"
            lines = [
                "import onnxruntime",
                f'session = onnxruntime.InferenceSession("{about.file}")',
                f'{outputs} = session.run(None, {{"images": images}})  # (B, 3, {facts.size_px}, {facts.size_px}) float32, normalized',
            ]
        case "hf":
            lines = [
                "import timm",
                'model = timm.create_model("local-dir:.", pretrained=True)  # this folder; "hf-hub:OWNER/NAME" once it is on the hub',
                "prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model))  # of a PIL image",
                f"{output} = model.eval()(images)",
            ]
        case library:
            lines = [f"import {library}, safetensors.torch, torch", *about.code, load, f"{output} = model.eval()(images)"]
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (facts.pixel_mean, facts.pixel_std))
    prepared = f"Images are RGB, {facts.view}, scaled to [0, 1], and normalized with mean ({mean}) and deviation ({std}) by channel."
    if about.format == "hf":
        kind = "AutoModelForImageClassification" if has_head else "AutoModel"
        prepared += f' `transformers.{kind}.from_pretrained(".")` loads the folder too.'
    if about.format in ("torchvision", "timm", "hf"):
        prepared += f' `ray_sassl.load_encoder("{about.file}")` reads the same file.'
    code = "\n".join(lines)
    return f"```python\n{code}\n```\n\n{prepared}"


def _recipe(about: CardFacts) -> list[tuple[str, str]]:
    config = about.config
    crop = f"{config.views.size_px} px" + (
        f", and {config.views.num_small} of {config.views.small_px} px" if config.views.num_small else ""
    )
    optim = f"{config.optim.name}, base learning rate {config.optim.base_lr:g}, weight decay {config.optim.weight_decay:g}"
    return [
        *([("network", f"{about.facts.network}, {about.facts.layer}")] if (about.facts.network, about.facts.layer) != _USUAL else []),
        ("data", _data(about)),
        ("objective", _fields(config.method.model_dump(mode="json"), config.method.name)),
        ("views", crop),
        ("style augmentation", _style(config)),
        ("optimizer", optim),
        (
            "length",
            f"{config.train.epochs:g} epochs were planned, in batches of {config.train.global_batch:,}; {about.facts.step:,} updates done",
        ),
        ("precision", config.train.precision),
        ("all settings", "`config.yaml` next to this file; `ray-sassl pretrain config.yaml` runs them again"),
    ]


def _style(config: ExperimentConfig) -> str:
    if config.stylize.is_identity:
        return "none"
    sassl = config.sassl
    return (
        f"{config.stylize.name}, {sassl.views} view(s), probability {sassl.prob:g}, alpha in {list(sassl.alpha)}, "
        f"beta in {list(sassl.beta)}, styles: {sassl.style_source}"
    )


def _data(about: CardFacts) -> str:
    paths = ", ".join(markdown_code(path) for path in about.config.data.paths)
    if about.run is None or not storage.exists(path := storage.join(about.run.path, INDEX)):
        return paths
    index = Index.load(path)
    bad = sum(about.run.bad_rows.values())
    left_out = f"; {bad:,} of them could not be used" if bad else ""
    return f"{paths}: {index.num_rows:,} images, no labels used{left_out} (index sha256 `{index.fingerprint[:16]}`)"


def _quality(about: CardFacts) -> str:
    parts = []
    if about.head is not None:
        head = about.head
        held = f"; {head.test_top1:.2%} of {head.num_test:,} test images" if head.test_top1 is not None and head.num_test else ""
        parts.append(f"The linear classifier in this file is right on {head.train_top1:.2%} of its {head.num_train:,} train images{held}.")
        if head.classes:
            named = ", ".join(map(markdown, head.classes[:_NAMED_CLASSES])) + (", ..." if len(head.classes) > _NAMED_CLASSES else "")
            parts.append(f"Its classes: {named}.")
    rows = _score_rows(about.run) if about.run else []
    if rows:
        lines = "\n".join(f"| {' | '.join(map(markdown, row))} |" for row in rows)
        parts.append(f"| protocol | encoder | score | value | 95 % interval |\n|---|---|---|---|---|\n{lines}")
    if about.run and about.run.summary:
        last = about.run.summary.get("metrics", {})
        named = ", ".join(f"{name} {last[name]:.4g}" for name in _NAMED_METRICS if name in last)
        if named:
            parts.append(f"At the end of the run (status: {markdown(about.run.summary['status'])}): {named}.")
    return "\n\n".join(parts) or "It has not been evaluated; `ray-sassl evaluate RUN knn` evaluates it."


def _score_rows(run: RunRecord) -> list[list[str]]:
    rows = []
    for scores in run.scores:
        own = f"this one{f' at step {scores.step:,}' if scores.step is not None else ''}"
        for encoder, values in {own: scores.scores, **scores.baselines}.items():
            rows += [[scores.protocol, encoder, name, *shown(score)] for name, score in values.items()]
        rows += [
            [scores.protocol, "chance", name, shown_value(score.chance, is_share=score.is_share), ""]
            for name, score in scores.scores.items()
            if score.chance is not None
        ]
    return rows


def _origin(about: CardFacts) -> list[tuple[str, str]]:
    environment: dict[str, Any] = about.run.environment if about.run else {}
    packages = environment.get("packages", {})
    rows = [
        ("checkpoint", f"`{about.facts.source}`"),
        ("sha256 of the weights", f"`{about.facts.weights_sha256}`"),
        ("trained with", ", ".join(f"{name} {version}" for name, version in packages.items()) or "unknown versions"),
    ]
    if commit := environment.get("commit"):
        rows.append(("commit", f"`{commit}`"))
    if gpus := environment.get("gpus"):
        rows.append(("GPUs of the first machine", ", ".join(gpus)))
    return [*rows, ("exported with", f"ray-sassl {about.facts.version}")]


def _license(about: CardFacts) -> str:
    stated = about.license or "Not stated: whoever trained this encoder has to choose one (`ray-sassl export --license`)."
    text = f"{stated}\n\nThe license of the training data applies to these weights too. ray-sassl itself is under Apache-2.0."
    if not about.config.stylize.is_identity and (style := about.config.stylize.published_weights()) is not None:
        text += f" Views were stylized by {style.title} ({style.license})."
    return text


def _fields(tree: dict[str, Any], name: str) -> str:
    plain = ", ".join(f"{key} {value}" for key, value in tree.items() if isinstance(value, int | float | str) and key != "name")
    return f"{name} ({plain})" if plain else name


def _table(rows: list[tuple[str, str]]) -> str:
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {_in_cell(value)} |" for name, value in rows)


def _in_cell(text: str) -> str:
    return one_line(text).replace("|", "\\|")
