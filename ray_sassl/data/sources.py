"""Find the files of the data set at `data.path`, in a fixed order."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace

from ray_sassl.data import IMAGE_EXTENSIONS, OTHER_IMAGES, SYNTHETIC, DataConfig, Format, SourceFile
from ray_sassl.data.decode import is_image
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
        ignored: Files that are not used, counted by extension, or by another reason: `hidden`, links to nothing, and so on.
        lost: Those of them that may be images which the user wants.
        own: Those of them that this package wrote itself, by folder (with a `/` at its end) or picture.
    """

    format: Format
    files: list[SourceFile]
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

    files: list[SourceFile] = field(default_factory=list)
    lost: LeftOut = field(default_factory=LeftOut)
    own: Counter[str] = field(default_factory=Counter)


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
    by_path = {file.entry.path: file for file in found.files}
    ignored = Counter({"given twice": len(found.files) - len(by_path)} | found.lost.counts)
    kinds: dict[Format, list[SourceFile]] = {"parquet": [], "webdataset": [], "folder": []}
    others: dict[str, list[SourceFile]] = {}
    for _, file in sorted(by_path.items()):
        format_ = _format_of(file, config)
        if _is_hidden(file):
            ignored["hidden"] += 1
            if format_ is not None and not storage.name_of(file.entry.path).startswith("._"):
                found.lost.add("hidden", [file.relative])
        elif format_ is not None:
            kinds[format_].append(file)
        else:
            others.setdefault(_extension(file), []).append(file)
    kinds["folder"] = _without_own(kinds["folder"], config, known, found.own)
    ignored.update({extension or "no extension": len(files) for extension, files in others.items()})
    _add_other_images(others, found.lost)
    if found.own:
        ignored[_OWN] = found.own.total()
    chosen = _choose(config, kinds, ignored)
    for format_, files in kinds.items():
        if format_ != chosen:
            ignored.update(_extension(file) for file in files)
    files = sorted(kinds[chosen], key=_mixed) if chosen == "folder" else kinds[chosen]
    return Sources(chosen, files, {name: count for name, count in sorted(ignored.items()) if count}, found.lost, found.own)


def _without_own(files: list[SourceFile], config: DataConfig, known: Collection[Entry], own: Counter[str]) -> list[SourceFile]:
    """The images except pictures that this package drew, which are counted in `own`."""
    pngs = [file for file in files if file.entry not in known and file.entry.path not in config.paths and _extension(file) == "png"]
    local = [file for file in pngs if storage.local_path(file.entry.path) is not None]
    portions = [local[first : first + _FILES_AT_ONCE] for first in range(0, len(local), _FILES_AT_ONCE)]
    with ThreadPoolExecutor(_FILES_OPENED) as pool:
        drawn = {file.entry.path for portion in pool.map(_own_pictures, portions) for file in portion}
    own.update(file.relative for file in files if file.entry.path in drawn)
    return [file for file in files if file.entry.path not in drawn] if drawn else files


def _own_pictures(files: Sequence[SourceFile]) -> list[SourceFile]:
    return [file for file in files if is_own_picture(storage.filesystem_of(file.entry.path)[1])]


def _add_other_images(others: dict[str, list[SourceFile]], lost: LeftOut) -> None:
    """Count files that are images, by their ending or the content of one of the first files with it, but whose ending is not read."""
    for number, (extension, files) in enumerate(sorted(others.items())):
        if extension in OTHER_IMAGES:
            lost.add(f".{extension}", (file.relative for file in files))
        elif number < _ENDINGS_TRIED and any(_is_image(file.entry) for file in files[:_FILES_TRIED]):
            ending = f"that end in .{extension}" if extension else "without an ending"
            lost.add(f"images {ending}", (file.relative for file in files))


def _is_image(entry: Entry) -> bool:
    if storage.local_path(entry.path) is None:
        return False
    with suppress(OSError), open(storage.filesystem_of(entry.path)[1], "rb", buffering=0) as file:
        return is_image(file.read(16))
    return False


def check_there(config: DataConfig) -> None:
    """Check that every path of `config.path` exists; folders are not listed.

    Raises:
        UsageError: one does not exist.
    """
    for path in config.paths:
        for concrete, entry in _places(path) if path not in SYNTHETIC else ():
            if entry is None:
                _add_matches(concrete, _Found())


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
        raise UsageError(f"{where} has {what}; choose with data.format={'|'.join(found)}, or give a narrower path")
    there = [f"{len(files):,} {_NOUN[format_]}" for format_, files in found.items()]
    there += [f"{count:,} {'.' if name.isalnum() else ''}{name}" for name, count in ignored.most_common(5) if count]
    sought = "Parquet files, tar shards or images (JPEG, PNG, WebP)" if wanted == "auto" else _NOUN[wanted]
    message = f"no {sought} in {where}; found there: {', '.join(there) or 'nothing'}"
    if ignored[_OWN]:
        message += ". To read a copy that ray-sassl made, give the copy's own folder"
    if any(name in ignored for name in ("gz", "tgz", "bz2", "xz", "zst")):
        message += ". Compressed tar shards cannot be read in parts; decompress them (images gain nothing from it)"
    raise UsageError(message)


def _format_of(file: SourceFile, config: DataConfig) -> Format | None:
    is_named = file.entry.path in config.paths
    return config.format if is_named and config.format != "auto" else _format_by_name(file)


def _format_by_name(file: SourceFile) -> Format | None:
    extension = _extension(file)
    return next((format_ for format_, extensions in EXTENSIONS.items() if extension in extensions), None)


def _extension(file: SourceFile) -> str:
    name = storage.name_of(file.entry.path)
    return name.rpartition(".")[2].lower() if "." in name else ""


def _is_hidden(file: SourceFile) -> bool:
    return any(part.startswith(".") for part in file.relative.split("/"))


def _add_files_of(given: str, found: _Found) -> None:
    if given in SYNTHETIC:
        folder = str(ensure_synthetic() / (given.partition(":")[2] or "train"))
        _add_files_below(folder, found)
        return
    for concrete, entry in _places(given):
        if entry is None:
            _add_matches(concrete, found)
        elif entry.is_file:
            found.files.append(SourceFile(entry, storage.parent(concrete)))
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
    files = [SourceFile(entry, folder) for entry in walk.files]
    names = [file.relative for file in files]
    folders, single = own_folders(names), marked_files(names)
    for reason, left_out in walk.left_out.items():
        found.lost.add(reason, (name for name in left_out if not name.startswith(folders) and (regex is None or regex.fullmatch(name))))
    chosen = [file for file, name in zip(files, names, strict=True) if regex is None or regex.fullmatch(name)]
    for file in chosen:
        name = file.relative
        if _is_mark(name):
            continue
        if name in single or name.startswith(folders):
            if _format_by_name(file) is not None:
                found.own[name if name in single else next(own for own in folders if name.startswith(own))] += 1
        else:
            found.files.append(file)
    return len(chosen)


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
        for concrete in _expand_numbers(path) if path not in SYNTHETIC else ():
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


def relative_folder(file: SourceFile) -> str:
    """The first folder below the path that the user gave, or an empty string if the file is directly in it."""
    first, slash, _ = file.relative.partition("/")
    return first if slash else ""


def resolve(config: DataConfig, known: Collection[Entry] = ()) -> tuple[Format, list[Entry], Sources]:
    """The format, the files with absolute paths, sizes and times, and the same as `Sources`; `known` is that of `find_sources`."""
    sources = find_sources(config, known)
    files = [_from_the_root(file) for file in sources.files]
    return sources.format, [file.entry for file in files], replace(sources, files=files)


def _from_the_root(file: SourceFile) -> SourceFile:
    """The file with its absolute path, so that other processes find it too."""
    return SourceFile(replace(file.entry, path=absolute(file.entry.path)), absolute(file.folder))
