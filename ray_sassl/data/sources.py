"""Find the files of the data set at `data.path`, in a fixed order."""

from __future__ import annotations

import hashlib
import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_sassl.data import IMAGE_EXTENSIONS, OTHER_IMAGES, SYNTHETIC, DataConfig, Format, SourceFiles
from ray_sassl.data.decode import is_image
from ray_sassl.data.hub import ensure_hub, hub_name, is_hub
from ray_sassl.data.left_out import LeftOut
from ray_sassl.data.synthetic import ensure_synthetic
from ray_sassl.files import storage
from ray_sassl.files.own import MARKER, is_own_picture, marked_files, own_folders
from ray_sassl.files.paths import absolute
from ray_sassl.files.storage import Entry
from ray_sassl.plugins import did_you_mean
from ray_sassl.process.errors import UsageError

EXTENSIONS: dict[Format, tuple[str, ...]] = {"parquet": ("parquet", "pq"), "webdataset": ("tar",), "folder": IMAGE_EXTENSIONS}

_NOUN: dict[Format, str] = {"parquet": "Parquet files", "webdataset": "tar shards", "folder": "images"}
_OWN = "written by ray-sassl"
_WILDCARD = re.compile(r"[*?\[]")
_NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")
_OF_SYSTEMS = r"(^|/)(__MACOSX|@eaDir|#recycle|\$RECYCLE\.BIN|System Volume Information|lost\+found)/"
"""Folders of operating systems and network drives, with copies, thumbnails and deleted files; they count as hidden."""
_FILES_OPENED = 16
_FILES_AT_ONCE = 512
_FILES_TRIED = 20
_ENDINGS_TRIED = 100


@dataclass(frozen=True)
class Sources:
    """The files of a data set.

    Attributes:
        format: As given, or recognized by the file names.
        files: Each file once. Shards are sorted by path. Images of a folder, which are rows themselves, are sorted by a hash of the name,
            so that its classes are mixed and a copy of it elsewhere has the same order.
        root: The common beginning of all paths, up to a `/`.
        ignored: Files that are not used, counted by extension, or by another reason: `hidden`, links to nothing, and so on.
        lost: Those of them that may be images which the user wants.
        own: Those of them that this package wrote itself, by folder (with a `/` at its end) or picture.
    """

    format: Format
    files: SourceFiles
    root: str
    ignored: dict[str, int]
    lost: LeftOut
    own: Counter[str]

    def own_in_words(self) -> str | None:
        """How many of our own files are left out, and where the first three are; None if there are none."""
        if not self.own:
            return None
        named = [f"{name} ({count:,})" if name.endswith("/") else name for name, count in sorted(self.own.items())]
        more = ", ..." if len(named) > 3 else ""
        return f"{self.own.total():,} files that ray-sassl itself wrote are left out: {', '.join(named[:3])}{more}"


@dataclass
class _Found:
    """The files at the given paths, of all formats."""

    parts: list[SourceFiles] = field(default_factory=list)
    lost: LeftOut = field(default_factory=LeftOut)
    own: Counter[str] = field(default_factory=Counter)

    def files(self) -> tuple[SourceFiles, int]:
        """The files in the order of their paths, each once, and how often one was given again."""
        if len(self.parts) == 1:
            return self.parts[0], 0
        none = SourceFiles((), np.empty(0, np.int32), pa.array([], pa.large_string()), np.empty(0, np.int64), np.empty(0, np.int64))
        parts = [none, *self.parts]
        etags = [pa.array([""] * len(part), pa.large_string()) if part.etag is None else part.etag for part in parts]
        files = SourceFiles(
            tuple(part.folders[0] for part in self.parts),
            np.repeat(np.arange(len(self.parts), dtype=np.int32), [len(part) for part in self.parts]),
            cast(pa.LargeStringArray, pa.concat_arrays([part.name for part in parts])),
            np.concatenate([part.size_bytes for part in parts]),
            np.concatenate([part.mtime_ns for part in parts]),
            cast(pa.LargeStringArray, pa.concat_arrays(etags)) if any(part.etag is not None for part in parts) else None,
        )
        paths = np.array(list(files.paths()), object)
        order = np.argsort(paths, kind="stable")
        is_last = np.ones(len(order), bool)  # what is given twice is below the folder that was given last
        is_last[:-1] = paths[order[:-1]] != paths[order[1:]]
        return files.at(order[is_last]), int((~is_last).sum())


_HIDDEN, _OTHER = len(EXTENSIONS), len(EXTENSIONS) + 1
"""Kinds of files besides the formats, which are numbered in the order of `EXTENSIONS`."""
_FORMATS = tuple(EXTENSIONS)


def find_sources(config: DataConfig, known: Collection[Entry] = ()) -> Sources:
    """The files at `config.path` of format `config.format`.

    Args:
        config: The data set.
        known: Files that are known to be images of the data set, which need not be opened to find out whether we wrote them.

    Raises:
        UsageError: a path does not exist, or there are no readable files, or files of several formats.
    """
    found = _Found()
    for path in config.paths:
        _add_files_of(path, found)
    files, num_again = found.files()
    found.parts.clear()  # millions of names are in memory once
    ignored = Counter({"given twice": num_again} | found.lost.counts)
    kind, others = _kinds(files, config, ignored, found.lost)
    drawn = _own_pictures_among(files, kind, config, known)
    found.own.update(files[place].relative for place in drawn.tolist())
    kind[drawn] = _OTHER
    ignored.update({extension or "no extension": len(places) for extension, places in others.items()})
    _add_other_images(files, others, found.lost)
    if found.own:
        ignored[_OWN] = found.own.total()
    chosen = _choose(config, {format_: int((kind == number).sum()) for number, format_ in enumerate(_FORMATS)}, ignored)
    of_others = np.flatnonzero((kind < _HIDDEN) & (kind != _FORMATS.index(chosen)))
    ignored.update(_extension(files[place].relative) for place in of_others.tolist())
    places = np.flatnonzero(kind == _FORMATS.index(chosen))
    files = files if len(places) == len(files) else files.at(places)
    files = replace(files, folders=tuple(absolute(folder) for folder in files.folders))  # so that other processes find them too
    root = _common_root(files)
    files = files.at(_mixed(files)) if chosen == "folder" else files
    return Sources(chosen, files, root, {name: count for name, count in sorted(ignored.items()) if count}, found.lost, found.own)


def _kinds(files: SourceFiles, config: DataConfig, ignored: Counter[str], lost: LeftOut) -> tuple[np.ndarray, dict[str, array[int]]]:
    """The kind of each file, (n,) uint8, and the places of the files of no format by extension; hidden ones are counted."""
    kind = np.empty(len(files), np.uint8)
    others: dict[str, array[int]] = {}
    by_extension = {extension: number for number, format_ in enumerate(_FORMATS) for extension in EXTENSIONS[format_]}
    is_named = _named_by(config) if config.format != "auto" else None
    of_system = pc.match_substring_regex(files.name, _OF_SYSTEMS).to_numpy(zero_copy_only=False)  # pyright: ignore
    for place, name in enumerate(files.names()):
        extension = _extension(name)
        number = by_extension.get(extension)
        if is_named is not None and is_named(files, place):
            number = _FORMATS.index(config.format)  # pyright: ignore[reportArgumentType]
        if name.startswith(".") or "/." in name or of_system[place]:
            kind[place] = _HIDDEN
            ignored["hidden"] += 1
            if number is not None and not name.rpartition("/")[2].startswith("._"):
                lost.add("hidden", [name])
        elif number is not None:
            kind[place] = number
        else:
            kind[place] = _OTHER
            others.setdefault(extension, array("q")).append(place)
    return kind, others


def _named_by(config: DataConfig) -> Callable[[SourceFiles, int], bool]:
    """Whether the config names the file itself, and not only a folder with it."""
    given = set(config.paths)
    names = {storage.name_of(path) for path in given}

    def is_named(files: SourceFiles, place: int) -> bool:
        name = files.name[place].as_py()
        return name.rpartition("/")[2] in names and files[place].entry.path in given

    return is_named


def _own_pictures_among(files: SourceFiles, kind: np.ndarray, config: DataConfig, known: Collection[Entry]) -> np.ndarray:
    """The places of pictures that this package drew."""
    is_local = np.array([storage.local_path(folder) is not None for folder in files.folders], bool)
    candidates = np.flatnonzero((kind == _FORMATS.index("folder")) & is_local[files.folder]) if len(files) else np.empty(0, np.int64)
    ends_in_png = pc.match_substring(files.name, ".png", ignore_case=True).to_numpy(zero_copy_only=False)  # pyright: ignore
    candidates = candidates[ends_in_png[candidates]]
    portions = [candidates[first : first + _FILES_AT_ONCE] for first in range(0, len(candidates), _FILES_AT_ONCE)]

    def drawn(portion: np.ndarray) -> list[int]:
        chosen = ((place, files[place].entry) for place in portion.tolist())
        return [
            place
            for place, entry in chosen
            if _extension(entry.path) == "png"
            and entry.path not in config.paths
            and entry not in known
            and is_own_picture(storage.filesystem_of(entry.path)[1])
        ]

    with ThreadPoolExecutor(_FILES_OPENED) as pool:
        return np.array([place for places in pool.map(drawn, portions) for place in places], np.int64)


def _add_other_images(files: SourceFiles, others: dict[str, array[int]], lost: LeftOut) -> None:
    """Count files that are images, by their ending or the content of one of the first files with it, but whose ending is not read."""
    for number, (extension, places) in enumerate(sorted(others.items())):
        names = (files[place].relative for place in places)
        if extension in OTHER_IMAGES:
            lost.add(f".{extension}", names)
        elif number < _ENDINGS_TRIED and any(_is_image(files[place].entry) for place in places[:_FILES_TRIED]):
            ending = f"that end in .{extension}" if extension else "without an ending"
            lost.add(f"images {ending}", names)


def _is_image(entry: Entry) -> bool:
    if storage.local_path(entry.path) is None:
        return False
    with suppress(OSError), open(storage.filesystem_of(entry.path)[1], "rb", buffering=0) as file:
        return is_image(file.read(16))
    return False


def check_there(config: DataConfig) -> None:
    """Check that every path of `config.path` exists; folders are not listed, and of the hub only the form of the name is checked.

    Raises:
        UsageError: one does not exist.
    """
    for path in config.paths:
        if is_hub(path):
            hub_name(path)
        for concrete, entry in _places(path) if path not in SYNTHETIC and not is_hub(path) else ():
            if entry is None:
                _add_matches(concrete, _Found())


def _mixed(files: SourceFiles) -> np.ndarray:
    """The places of the files in the order of a hash of their names."""
    digests = array("Q")
    for name in files.names():
        digests.frombytes(hashlib.blake2b(name.encode(), digest_size=16).digest())
    halves = np.frombuffer(digests, ">u8").reshape(-1, 2)
    return np.lexsort((halves[:, 1], halves[:, 0]))


def _choose(config: DataConfig, counts: dict[Format, int], ignored: Counter[str]) -> Format:
    found: dict[Format, int] = {format_: count for format_, count in counts.items() if count}
    wanted = config.format
    if wanted != "auto" and wanted in found:
        return wanted
    where = ", ".join(config.paths)
    if wanted == "auto" and len(found) == 1:
        return next(iter(found))
    if wanted == "auto" and found:
        what = " and ".join(f"{count:,} {_NOUN[format_]}" for format_, count in found.items())
        raise UsageError(f"{where} has {what}; choose with data.format={'|'.join(found)}, or give a narrower path")
    there = [f"{count:,} {_NOUN[format_]}" for format_, count in found.items()]
    there += [f"{count:,} {'.' if name.isalnum() else ''}{name}" for name, count in ignored.most_common(5) if count]
    sought = "Parquet files, tar shards or images (JPEG, PNG, WebP)" if wanted == "auto" else _NOUN[wanted]
    message = f"no {sought} in {where}; found there: {', '.join(there) or 'nothing'}"
    if ignored[_OWN]:
        message += ". To read a copy that ray-sassl made, give the copy's own folder"
    if any(name in ignored for name in ("gz", "tgz", "bz2", "xz", "zst")):
        message += ". Compressed tar shards cannot be read in parts; decompress them (images gain nothing from it)"
    raise UsageError(message)


def _format_by_name(name: str) -> Format | None:
    extension = _extension(name)
    return next((format_ for format_, extensions in EXTENSIONS.items() if extension in extensions), None)


def _extension(path: str) -> str:
    name = path.rpartition("/")[2]
    return name.rpartition(".")[2].lower() if "." in name else ""


def _add_files_of(given: str, found: _Found) -> None:
    if given in SYNTHETIC:
        folder = str(ensure_synthetic() / (given.partition(":")[2] or "train"))
        _add_files_below(folder, found)
        return
    if is_hub(given):
        _add_files_below(str(ensure_hub(given)), found)
        return
    for concrete, entry in _places(given):
        if entry is None:
            _add_matches(concrete, found)
        elif entry.is_file:
            name = pa.array([storage.name_of(concrete)], pa.large_string())
            stamp = np.array([entry.size_bytes]), np.array([entry.mtime_ns])
            found.parts.append(SourceFiles((storage.parent(concrete),), np.zeros(1, np.int32), name, *stamp))
        else:
            _add_files_below(concrete, found)


def _places(given: str) -> Iterator[tuple[str, Entry | None]]:
    """Each path with its numbers expanded, and the file or folder there, or None if it is a glob.

    Raises:
        UsageError: the path does not exist and is not a glob.
    """
    for concrete in _expand_numbers(given if storage.is_uri(given) else storage.with_home(given)):
        entry = storage.stat(concrete)
        if entry is None and not _WILDCARD.search(storage.without_options(concrete)):
            raise UsageError(f"{concrete} does not exist{_nearest(concrete)}")
        yield concrete, entry


def _add_files_below(folder: str, found: _Found, regex: re.Pattern[str] | None = None) -> int:
    """Add the matching files below the folder, except our own; returns how many there are. Matching names that cannot be read are
    counted."""
    walk = storage.walk(folder)
    files = SourceFiles((folder,), np.zeros(len(walk.names), np.int32), walk.names, walk.size_bytes, walk.mtime_ns, walk.etag)
    marks = [name for name in files.names() if name.endswith(MARKER)]
    folders, single = own_folders(marks), marked_files(marks)
    for reason, left_out in walk.left_out.items():
        found.lost.add(reason, (name for name in left_out if not name.startswith(folders) and (regex is None or regex.fullmatch(name))))
    if regex is None and not marks:
        found.parts.append(files)
        return len(files)
    is_chosen, num_matches = np.zeros(len(files), bool), 0
    for place, name in enumerate(files.names()):
        if regex is not None and not regex.fullmatch(name):
            continue
        num_matches += 1
        if _is_mark(name):
            continue
        if name in single or name.startswith(folders):
            if _format_by_name(name) is not None:
                found.own[name if name in single else next(own for own in folders if name.startswith(own))] += 1
        else:
            is_chosen[place] = True
    found.parts.append(files.at(np.flatnonzero(is_chosen)))
    return num_matches


def _is_mark(name: str) -> bool:
    base = name.rpartition("/")[2]
    return base.startswith(".") and base.endswith(MARKER)


def _add_matches(pattern: str, found: _Found) -> None:
    """Add the files that the glob matches, and the files below folders that it matches.

    Raises:
        UsageError: there are none.
    """
    base, rest = _split_glob(pattern)
    if not _add_files_below(base, found, re.compile(_glob_to_regex(rest) + r"(/.*)?", re.DOTALL)):
        raise UsageError(f"nothing matches {pattern}")


def _split_glob(pattern: str) -> tuple[str, str]:
    """The folder in which to search for the glob, and the rest of the glob."""
    without_options = storage.without_options(pattern)
    scheme, _, address = without_options.rpartition("://")
    parts = address.split("/")
    fixed = next(number for number, part in enumerate(parts) if _WILDCARD.search(part))
    options = pattern[len(without_options) :] if scheme else ""
    base = (f"{scheme}://" if scheme else "") + ("/".join(parts[:fixed]) or ("/" if address.startswith("/") else ".")) + options
    return base, "/".join(parts[fixed:])


def path_around(config: DataConfig, place: str) -> str | None:
    """The path of the config that would include a folder at `place`, or None if there is none."""
    inside = _whole(place)
    for path in config.paths:
        for concrete in _expand_numbers(path) if path not in SYNTHETIC and not is_hub(path) else ():
            if inside.startswith(_whole(concrete)):
                return path
            if not _WILDCARD.search(storage.without_options(concrete)):
                continue
            base, rest = _split_glob(concrete)
            if inside.startswith(_whole(base)) and _may_hold(rest.split("/"), inside[len(_whole(base)) :].rstrip("/").split("/")):
                return path
    return None


def _may_hold(pattern: Sequence[str], below: Sequence[str]) -> bool:
    """Whether something in the folder `below` the glob's base may match its components."""
    for wanted, part in zip(pattern, below, strict=False):
        if "**" in wanted:
            return True
        if part and not re.fullmatch(_glob_to_regex(wanted), part, re.DOTALL):
            return False
    return True


def _whole(path: str) -> str:
    """The folder with a `/` at its end; links of a local one are resolved."""
    is_remote = storage.is_uri(path) and not path.startswith("file://")
    return f"{(storage.without_options(path) if is_remote else os.path.realpath(storage.filesystem_of(path)[1])).rstrip('/')}/"


def _glob_to_regex(pattern: str) -> str:
    """The regular expression of a glob: `*` and `?` match within one path component, `**/` matches any number of them."""
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


def _common_root(files: SourceFiles) -> str:
    """The common beginning of all paths, up to a `/`."""
    if len(files.folders) == 1:  # sorted already
        first, last = files[0].entry.path, files[len(files) - 1].entry.path
    else:
        first, last = min(files.paths()), max(files.paths())
    shared = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[: first.rfind("/", 0, shared) + 1]
