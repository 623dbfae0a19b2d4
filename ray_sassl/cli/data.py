"""`ray-sassl data`: inspect data sets, find bad images, convert between shard formats, fetch the papers' data sets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

import ray_sassl
from ray_sassl.process.console import open_console
from ray_sassl.process.errors import UsageError

if TYPE_CHECKING:
    from ray_sassl.data import DataConfig
    from ray_sassl.data.overlap import Overlap
    from ray_sassl.data.quarantine import BadRow

app = typer.Typer(no_args_is_help=True, help="Inspect, check, convert and fetch data sets.")

_LISTED = 20


class Format(StrEnum):
    """The formats that are read."""

    auto = "auto"
    parquet = "parquet"
    webdataset = "webdataset"
    folder = "folder"


class ShardFormat(StrEnum):
    """The formats that are written."""

    parquet = "parquet"
    webdataset = "webdataset"
    folder = "folder"


IMAGES = "Images: Parquet, tar shards or a folder, local or s3://, gs://."

Source = Annotated[str, typer.Argument(metavar="PATH", help="A file, folder or glob, local or s3://, gs://; or `synthetic`.")]
DataMoved = Annotated[
    bool, typer.Option("--data-moved", help="With --resume: the same data are elsewhere now (data.path), or were copied again.")
]
FormatOption = Annotated[Format, typer.Option("--from", help="The source's format; `auto` recognizes it by the file names.")]
ImageColumn = Annotated[str, typer.Option(help="Parquet: the column of encoded images.")]
LabelColumn = Annotated[str, typer.Option(help="Parquet: the column of labels; `none` if there are none.")]
LabelExtension = Annotated[str, typer.Option(help="WebDataset: extension of the member with the label.")]
MaxPixels = Annotated[int | None, typer.Option(help="Larger images count as bad. [default: 100,000,000, as data.max_pixels]")]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse data of which anything is left out, instead of saying so.")]
Backbone = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="The network, for a file of weights that does not say so: resnet50, or '{name: resnet18, stem: cifar}'."
    ),
]
Address = Annotated[str | None, typer.Option(help="A Ray cluster's address; by default RAY_ADDRESS, or else Ray is started here.")]


@app.command("inspect", epilog="Example: ray-sassl data inspect 's3://bucket/imagenet/train-*.tar' --out sheet.png")
def inspect_command(
    path: Source,
    out: Annotated[str, typer.Option(help="Where to write the contact sheet (PNG).")] = "contact_sheet.png",
    from_: FormatOption = Format.auto,
    image_column: ImageColumn = "image",
    label_column: LabelColumn = "label",
    label_extension: LabelExtension = "cls",
    strict: Strict = False,
) -> None:
    """Print counts, sizes and labels of a data set, and draw a contact sheet of its images."""
    config = data_config(path, from_, image_column, label_column, label_extension=label_extension, strict=strict)
    summary = ray_sassl.inspect_data(config, sheet=out)
    table = Table(title=path, show_header=False)
    table.add_row("format", summary.format)
    table.add_row("files", f"{summary.num_files:,} ({decimal(summary.num_bytes)})")
    table.add_row("rows", f"{summary.num_rows:,} in {summary.num_groups:,} row groups")
    table.add_row("labels", _labels(summary.labels, summary.class_names))
    sampled = f"of {summary.num_sampled:,} sampled rows"
    table.add_row("image formats", f"{', '.join(f'{name} {count:,}' for name, count in summary.image_formats.items()) or 'none'} {sampled}")
    for name, spread in (("width, px", summary.width_px), ("height, px", summary.height_px), ("file size, bytes", summary.encoded_bytes)):
        if spread is not None:
            table.add_row(name, f"{spread.smallest:,} to {spread.largest:,}, median {spread.median:,}")
    if summary.ignored:
        table.add_row("left aside", ", ".join(f"{count:,} {name}" for name, count in summary.ignored.items()))
    console = open_console()
    console.print(table)
    print_bad_rows(console, [*summary.problems, *summary.bad_rows], "found in the sample")
    console.print(f"Contact sheet: {out}")


@app.command("check", epilog="Example: ray-sassl data check data/train --out bad.jsonl   |   ray-sassl data check train --overlap test")
def check_command(
    path: Source,
    overlap: Annotated[
        str | None, typer.Option(metavar="OTHER", help="Also search for images of this data set, such as test images, by their bytes.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Where to write the bad rows, one JSON object per line.")] = None,
    from_: FormatOption = Format.auto,
    image_column: ImageColumn = "image",
    label_column: LabelColumn = "label",
    label_extension: LabelExtension = "cls",
    max_pixels: MaxPixels = None,
    strict: Strict = False,
    address: Address = None,
) -> None:
    """Decode every image, on Ray, and list those that cannot be used. Exits with 1 if there are any or the data sets overlap."""
    limit = {} if max_pixels is None else {"max_pixels": max_pixels}
    config = data_config(path, from_, image_column, label_column, label_extension=label_extension, strict=strict, **limit)
    other = None
    if overlap is not None:
        other = data_config(overlap, Format.auto, image_column, label_column, label_extension=label_extension, strict=strict)
    result = ray_sassl.check_data(config, overlap=other, out=out, address=address)
    console = open_console()
    if out is not None:
        console.print(f"Bad rows: {out}")
    print_bad_rows(console, result.bad_rows, f"of {result.num_rows:,} rows")
    if not result.bad_rows:
        console.print(f"All {result.num_rows:,} images are good.")
    if result.mixing is not None:
        console.print(f"{'[yellow]Warning:[/] ' if result.mixing.is_poor else ''}{escape(result.mixing.in_words())}", soft_wrap=True)
    if result.large_groups is not None:
        console.print(result.large_groups, soft_wrap=True)
    if result.overlap is not None:
        _print_overlap(console, result.overlap, path, str(overlap))
    if result.bad_rows or (result.overlap is not None and result.overlap.num_shared):
        raise typer.Exit(1)


@app.command("mixing", epilog="Example: ray-sassl data mixing 's3://bucket/train-*.parquet' --batch 4096")
def mixing_command(
    path: Source,
    batch: Annotated[int, typer.Option(min=2, help="Rows of a batch, over all workers.")] = 256,
    shuffle_gb: Annotated[float | None, typer.Option(help="As data.shuffle_gb. [default: as a run on this machine has it]")] = None,
    from_: FormatOption = Format.auto,
    label_column: LabelColumn = "label",
    label_extension: LabelExtension = "cls",
    image_column: ImageColumn = "image",
) -> None:
    """Print how well a run's batches will be mixed, against a uniform shuffle; no image is read.

    Classes are the labels, or else the folders, or else the shards that the rows are in.
    """
    config = data_config(path, from_, image_column, label_column, label_extension=label_extension, shuffle_gb=shuffle_gb)
    found = ray_sassl.measure_mixing(config, batch_size=batch)
    table = Table("", "as dealt", "uniform shuffle", title=f"Batches of {batch:,} from {path}", title_justify="left")
    table.add_row(f"{found.by} in a batch", f"{found.classes:.1f} (fewest {found.fewest_classes:,})", f"{found.uniform_classes:.1f}")
    table.add_row(f"pairs of one of the {found.by}", f"{found.same_class_pairs:.2%}", f"{found.uniform_pairs:.2%}")
    console = open_console()
    console.print(table)
    rows = "row" if found.piece_rows == 1 else "rows"
    console.print(f"{decimal(found.window_bytes)} are shuffled together, in pieces of up to {found.piece_rows:,} {rows}.")
    if found.is_poor:
        console.print(f"[yellow]Warning:[/] more than three times as many pairs. {escape(found.remedy)}", soft_wrap=True)


@app.command("convert", epilog="Example: ray-sassl data convert data/train shards --format webdataset --shard-rows 2000")
def convert_command(
    source: Source,
    target: Annotated[str, typer.Argument(metavar="DST", help="An empty folder or URI, or one where this conversion was stopped.")],
    format_: Annotated[ShardFormat, typer.Option("--format", help="The format to write.")],
    shard_rows: Annotated[int, typer.Option(min=1, help="Rows per shard.")] = 4096,
    group_rows: Annotated[
        int | None,
        typer.Option(min=1, help="Parquet: rows per row group, the smallest portion that is read. [default: 256, fewer with --shuffle]"),
    ] = None,
    shuffle: Annotated[
        int | None, typer.Option(metavar="SEED", help="Write the rows in a new order, shuffled over the whole data set.")
    ] = None,
    memory_gb: Annotated[float, typer.Option(help="With --shuffle: the images that a task holds, with their copies, in GB.")] = 2.0,
    from_: FormatOption = Format.auto,
    image_column: ImageColumn = "image",
    label_column: LabelColumn = "label",
    label_extension: LabelExtension = "cls",
    max_bad_fraction: Annotated[float, typer.Option(help="Stop if a larger share of the rows cannot be copied.")] = 0.01,
    strict: Strict = False,
    address: Address = None,
) -> None:
    """Rewrite a data set as Parquet files, WebDataset shards or a folder of images, on Ray; the images' bytes stay as they are."""
    if shuffle is None and memory_gb != 2:
        raise UsageError("--memory-gb is for --shuffle; leave it out")
    if format_ is not ShardFormat.parquet and group_rows is not None:
        raise UsageError("--group-rows is for Parquet; other formats have no row groups, so leave it out")
    options = {"label_extension": label_extension, "max_bad_fraction": max_bad_fraction, "strict": strict}
    config = data_config(source, from_, image_column, label_column, **options)
    console = open_console()
    with resumable(console, target):
        sizes = {"shard_rows": shard_rows, "group_rows": group_rows, "memory_gb": memory_gb}
        result = ray_sassl.convert_data(config, target, format_.value, **sizes, shuffle=shuffle, address=address)
    print_bad_rows(console, result.bad_rows, "left out")
    there = result.num_shards - result.num_written
    console.print(
        f"{result.num_rows:,} rows in {result.num_shards:,} shards in {target}: {result.num_written:,} written now"
        + (f", {there:,} were there already." if there else ".")
    )


@app.command("cards", epilog="Example: ray-sassl data cards food101")
def cards_command(
    name: Annotated[str | None, typer.Argument(help="Print the whole card of this one.")] = None,
    root: Annotated[str | None, typer.Option(help="The folder of fetched data sets. [default: the cache]")] = None,
) -> None:
    """List the data sets of the papers' transfer tables, and which of them are on this machine."""
    from ray_sassl.evaluation.targets.cards import card_of

    console, known = open_console(), ray_sassl.list_datasets(root)
    if name is not None:
        card = card_of(name)
        table = Table(title=card.title, show_header=False)
        for field in ("name", "metric", "num_classes", "num_train", "num_test", "splits", "license", "source", "paper", "layout"):
            value = getattr(card, field)
            table.add_row(field, f"{value:,}" if isinstance(value, int) else value)
        table.add_row("download", f"by hand: {card.by_hand}" if card.by_hand else f"ray-sassl data fetch {card.name}")
        console.print(table)
        return
    table = Table("name", "score", "classes", "train", "test", "license", "here")
    for card, is_here in known.values():
        here = "yes" if is_here else "by hand" if card.by_hand else "no"
        table.add_row(card.name, card.metric, f"{card.num_classes:,}", f"{card.num_train:,}", f"{card.num_test:,}", card.license, here)
    console.print(table)


@app.command("fetch", epilog="Example: ray-sassl data fetch flowers102   |   ray-sassl data fetch cars --from downloads/")
def fetch_command(
    name: Annotated[str, typer.Argument(help="A data set that `data cards` lists.")],
    folder: Annotated[str | None, typer.Option("--from", help="A folder that has its files already. [default: download them]")] = None,
    out: Annotated[
        str | None, typer.Option(help="Folder or URI to write to, such as one that a whole cluster can read. [default: the cache]")
    ] = None,
    keep_files: Annotated[bool, typer.Option("--keep-files", help="Keep the downloaded files next to the Parquet files.")] = False,
) -> None:
    """Fetch a data set of the transfer tables, check it against its card, and write it as Parquet.

    Downloads are checked by their published md5. Each data set has its own terms: `data cards NAME` prints them.
    """
    from ray_sassl.evaluation.targets.cards import card_of
    from ray_sassl.evaluation.targets.prepare import default_root
    from ray_sassl.files import storage

    console, card = open_console(), card_of(name)
    console.print(f"{card.title}: {card.license}. {card.source}", soft_wrap=True)
    done = ray_sassl.fetch_dataset(name, files=folder, root=out, keep_files=keep_files)
    if done is None:
        console.print(f"{card.title} is in {storage.join(out or default_root(), card.name)} already.", soft_wrap=True)
        return
    notes = [f"{done.num_converted:,} became PNG"] if done.num_converted else []
    notes += [f"{done.num_unreadable:,} cannot be read"] if done.num_unreadable else []
    what = f" ({', '.join(notes)})" if notes else ""
    console.print(f"{done.num_images:,} images in {done.path}{what}", soft_wrap=True)


def data_config(path: str, from_: Format, image_column: str, label_column: str, **fields: Any) -> DataConfig:
    from pydantic import ValidationError

    from ray_sassl.data import DataConfig
    from ray_sassl.data.hub import is_hub
    from ray_sassl.files import storage

    column = None if label_column.lower() in ("none", "null", "") else label_column
    # Other processes may have another working directory.
    is_name = is_hub(path) or (path.startswith("synthetic") and not Path(path).exists())
    whole = path if is_name or storage.is_uri(path) else str(Path(storage.with_home(path)).absolute())
    try:
        return DataConfig(path=whole, format=from_.value, image_column=image_column, label_column=column, **fields)
    except ValidationError as error:
        raise UsageError("; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())) from error


def _labels(labels: dict[int, int], class_names: tuple[str, ...]) -> str:
    from ray_sassl.data import NO_LABEL

    named = {label: count for label, count in labels.items() if label != NO_LABEL}
    unlabeled = f"{labels[NO_LABEL]:,} rows without a label" if NO_LABEL in labels else ""
    if not named:
        return unlabeled
    shown = [f"{class_names[label] if label < len(class_names) else label}: {count:,}" for label, count in list(named.items())[:_LISTED]]
    more = ", ..." if len(named) > _LISTED else ""
    text = f"{len(named):,} classes of {min(named.values()):,} to {max(named.values()):,} rows ({', '.join(shown)}{more})"
    return f"{text}; {unlabeled}" if unlabeled else text


def _print_overlap(console: Console, found: Overlap, path: str, other: str) -> None:
    console.print(f"{found.num_shared:,} of {found.num_other:,} images in {other} are in {path} too, byte by byte.", soft_wrap=True)
    if not found.named:
        return
    table = Table()
    for heading in (path, other):
        table.add_column(heading, overflow="fold")
    for names in found.named:
        table.add_row(*names)
    if found.num_shared > len(found.named):
        table.add_row("...", f"and {found.num_shared - len(found.named):,} more")
    console.print(table)


@contextmanager
def resumable(console: Console, target: str) -> Iterator[None]:
    """A signal that ends the command within the block is answered with what stays and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"Stopped. The same command goes on where it was: what is finished in {target} stays.", soft_wrap=True)
        raise


def print_bad_rows(console: Console, bad_rows: list[BadRow], which: str) -> None:
    if not bad_rows:
        return
    table = Table(title=f"{len(bad_rows):,} bad rows {which}")
    for heading in ("file", "row", "reason"):
        table.add_column(heading, overflow="fold")
    for row in bad_rows[:_LISTED]:
        table.add_row(row.path, str(row.row) if row.row >= 0 else "whole file", row.reason)
    if len(bad_rows) > _LISTED:
        table.add_row("...", "", f"and {len(bad_rows) - _LISTED:,} more; --out lists all of them" if which.startswith("of") else "and more")
    console.print(table)
