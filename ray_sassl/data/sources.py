"""From what the user gave as `data.path` to the files of the data set, in a fixed order."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ray_sassl.data import IMAGE_EXTENSIONS, SYNTHETIC, DataConfig, Format, SourceFile
from ray_sassl.data.synthetic import ensure_synthetic
from ray_sassl.files import storage
from ray_sassl.files.paths import absolute
from ray_sassl.files.storage import Entry
from ray_sassl.plugins import UsageError, did_you_mean

EXTENSIONS: dict[Format, tuple[str, ...]] = {"parquet": ("parquet", "pq"), "webdataset": ("tar",), "folder": IMAGE_EXTENSIONS}

_NOUN: dict[Format, str] = {"parquet": "Parquet files", "webdataset": "tar shards", "folder": "images"}
_OTHER_IMAGES = ("avif", "bmp", "gif", "heic", "heif", "jfif", "jp2", "jpe", "jxl", "tif", "tiff")
"""Extensions of images that are not read."""
_NAMED = 3
_WILDCARD = re.compile(r"[*?\[]")
_NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class Sources:
    """The files of a data set.

    Attributes:
        format: As given, or told from the file names.
        files: Each once. Shards sorted by path; images of a folder, which are rows themselves, mixed: by a hash of the name, so that the
            classes of a folder do not come one after the other, and a copy of it elsewhere has the same order.
        ignored: Files that were left aside, counted by extension, or by the reason where it is another: `hidden`, links to nothing, and so
            on.
        lost: Of these, what the user may have meant to be images: names, by extension or reason.
    """

    format: Format
    files: list[SourceFile]
    ignored: dict[str, int]
    lost: dict[str, list[str]]

    def lost_in_words(self) -> str | None:
        """How many files that may be images are left out, why, and three of each kind; None where there are none."""
        if not self.lost:
            return None
        kinds = []
        for reason, names in self.lost.items():
            more = ", ..." if len(names) > _NAMED else ""
            kinds.append(f"{len(names):,} {'.' if reason in _OTHER_IMAGES else ''}{reason} ({', '.join(names[:_NAMED])}{more})")
        return f"{sum(map(len, self.lost.values())):,} files are left out: {'; '.join(kinds)}"


def find_sources(config: DataConfig) -> Sources:
    """The files that `config.path` and `config.format` mean.

    Raises:
        UsageError: a path does not exist, nothing readable is there, or several formats are.
    """
    lost: dict[str, list[str]] = {}
    given = [file for path in config.paths for file in _files_of(path, lost)]
    by_path = {file.entry.path: file for file in given}
    ignored = Counter({"given twice": len(given) - len(by_path)} | {reason: len(names) for reason, names in lost.items()})
    kinds: dict[Format, list[SourceFile]] = {"parquet": [], "webdataset": [], "folder": []}
    for _, file in sorted(by_path.items()):
        format_ = "hidden" if _is_hidden(file) else _format_of(file, config)
        if format_ is None or format_ == "hidden":
            extension = _extension(file)
            ignored[format_ or extension or "no extension"] += 1
            if format_ is None and extension in _OTHER_IMAGES:
                lost.setdefault(extension, []).append(file.relative)
        else:
            kinds[format_].append(file)
    chosen = _choose(config, kinds, ignored)
    for format_, files in kinds.items():
        if format_ != chosen:
            ignored.update(_extension(file) for file in files)
    files = sorted(kinds[chosen], key=_mixed) if chosen == "folder" else kinds[chosen]
    return Sources(chosen, files, {name: count for name, count in sorted(ignored.items()) if count}, lost)


def check_there(config: DataConfig) -> None:
    """See that something is at each path that `config.path` means; folders are not listed.

    Raises:
        UsageError: nothing is.
    """
    for path in config.paths:
        for concrete, entry in _places(path) if path not in SYNTHETIC else ():
            if entry is None:
                next(_matches(concrete, {}))


def _mixed(file: SourceFile) -> bytes:
    return hashlib.blake2b(file.relative.encode(), digest_size=16).digest()


def _choose(config: DataConfig, kinds: dict[Format, list[SourceFile]], ignored: Counter[str]) -> Format:
    found: dict[Format, list[SourceFile]] = {format_: files for format_, files in kinds.items() if files}
    wanted = config.format
    if wanted != "auto" and wanted in found:
        return wanted
    where = ", ".join(config.paths)
    if wanted == "auto" and len(found) == 1:
        return next(iter(found))
    if wanted == "auto" and found:
        what = " and ".join(f"{len(files):,} {_NOUN[format_]}" for format_, files in found.items())
        raise UsageError(f"{where} holds {what}; say which are meant with data.format={'|'.join(found)}, or give a narrower path")
    there = [f"{len(files):,} {_NOUN[format_]}" for format_, files in found.items()]
    there += [f"{count:,} {'.' if name.isalnum() else ''}{name}" for name, count in ignored.most_common(5) if count]
    sought = "Parquet files, tar shards or images (JPEG, PNG, WebP)" if wanted == "auto" else _NOUN[wanted]
    message = f"no {sought} in {where}; found there: {', '.join(there) or 'nothing'}"
    if any(name in ignored for name in ("gz", "tgz", "bz2", "xz", "zst")):
        message += ". Compressed tar shards cannot be read in parts; decompress them (images gain nothing from it)"
    raise UsageError(message)


def _format_of(file: SourceFile, config: DataConfig) -> Format | None:
    is_named = file.entry.path in config.paths
    if is_named and config.format != "auto":
        return config.format
    extension = _extension(file)
    return next((format_ for format_, extensions in EXTENSIONS.items() if extension in extensions), None)


def _extension(file: SourceFile) -> str:
    name = storage.name_of(file.entry.path)
    return name.rpartition(".")[2].lower() if "." in name else ""


def _is_hidden(file: SourceFile) -> bool:
    return any(part.startswith(".") for part in file.relative.split("/"))


def _files_of(given: str, lost: dict[str, list[str]]) -> Iterator[SourceFile]:
    if given in SYNTHETIC:
        folder = str(ensure_synthetic() / (given.partition(":")[2] or "train"))
        yield from _files_below(folder, lost)
        return
    for concrete, entry in _places(given):
        if entry is None:
            yield from _matches(concrete, lost)
        elif entry.is_file:
            yield SourceFile(entry, storage.parent(concrete))
        else:
            yield from _files_below(concrete, lost)


def _places(given: str) -> Iterator[tuple[str, Entry | None]]:
    """Each path that is meant, with the file or folder there, or None where it is a glob.

    Raises:
        UsageError: it is neither.
    """
    for concrete in _expand_numbers(given if storage.is_uri(given) else os.path.expanduser(given)):
        entry = storage.stat(concrete)
        if entry is None and not _WILDCARD.search(storage.without_options(concrete)):
            raise UsageError(f"{concrete} does not exist{_nearest(concrete)}")
        yield concrete, entry


def _files_below(folder: str, lost: dict[str, list[str]], regex: re.Pattern[str] | None = None) -> Iterator[SourceFile]:
    """The files below the folder, those that match; what is lost, and would match, is added to `lost`."""
    found = storage.walk(folder)
    for reason, names in found.left_out.items():
        if matching := [name for name in names if regex is None or regex.fullmatch(name)]:
            lost.setdefault(reason, []).extend(matching)
    files = (SourceFile(entry, folder) for entry in found.files)
    return (file for file in files if regex is None or regex.fullmatch(file.relative))


def _matches(pattern: str, lost: dict[str, list[str]]) -> Iterator[SourceFile]:
    """The files that the glob matches, and those below folders that it matches."""
    without_options = storage.without_options(pattern)
    scheme, _, address = without_options.rpartition("://")
    parts = address.split("/")
    fixed = next(number for number, part in enumerate(parts) if _WILDCARD.search(part))
    options = pattern[len(without_options) :] if scheme else ""
    base = (f"{scheme}://" if scheme else "") + ("/".join(parts[:fixed]) or ("/" if address.startswith("/") else ".")) + options
    found = list(_files_below(base, lost, re.compile(_glob_to_regex("/".join(parts[fixed:])) + r"(/.*)?", re.DOTALL)))
    if not found:
        raise UsageError(f"nothing matches {pattern}")
    yield from found


def _glob_to_regex(pattern: str) -> str:
    """`*` and `?` stay within one path component, `**/` stands for any number of them."""
    regex = ""
    for token in re.findall(r"\*\*/?|\*|\?|\[[^\]]+\]|.", pattern):
        if token.startswith("**"):
            regex += "(?:.*/)?" if token.endswith("/") else ".*"
        elif token in ("*", "?"):
            regex += "[^/]*" if token == "*" else "[^/]"
        elif token.startswith("[") and len(token) > 1:
            regex += "[" + token[1:-1].replace("!", "^", 1) + "]" if token[1] == "!" else token
        else:
            regex += re.escape(token)
    return regex


def _expand_numbers(path: str) -> Iterator[str]:
    """`x-{00..02}` as `x-00`, `x-01`, `x-02`, the usual way to name WebDataset shards."""
    match = _NUMBERS.search(path)
    if match is None:
        yield path
        return
    first, last = match.groups()
    for number in range(int(first), int(last) + 1):
        yield from _expand_numbers(f"{path[: match.start()]}{number:0{len(first)}d}{path[match.end() :]}")


def _nearest(path: str) -> str:
    name = storage.name_of(path)
    try:
        siblings = [storage.name_of(entry.path) for entry in storage.list_dir(storage.parent(path))]
    except (OSError, UsageError):
        return ""
    return did_you_mean(name, siblings)


def relative_folder(file: SourceFile) -> str:
    """The first folder below the path that the user gave, or an empty string where the file lies directly in it."""
    first, slash, _ = file.relative.partition("/")
    return first if slash else ""


def resolve(config: DataConfig) -> tuple[Format, list[Entry], Sources]:
    """The format, the files by absolute paths with their sizes and times, and the same as `Sources`."""
    sources = find_sources(config)
    files = [_from_the_root(file) for file in sources.files]
    return sources.format, [file.entry for file in files], replace(sources, files=files)


def _from_the_root(file: SourceFile) -> SourceFile:
    """The file by its absolute path, so that other processes find it too."""
    return SourceFile(replace(file.entry, path=absolute(file.entry.path)), absolute(file.folder))
