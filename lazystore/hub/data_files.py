"""Which files of a hub repository make a split: by the card's ``configs``, else by their folders and names.

The rules are those of Hugging Face's "Structure your repository" and "Manual configuration" pages, as ``datasets``
applies them. Pure functions over names; nothing is fetched here, and nothing is read but Parquet.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lazystore.errors import ConfigError
from lazystore.hub.near import near

__all__ = ["Choice", "NotDirect", "choose", "converted_card", "info_of", "matches"]

SUFFIX = ".parquet"
#: What a config of the card may say that does not change how its files are read.
PLAIN_KEYS = frozenset({"config_name", "data_files", "data_dir", "default", "version", "description"})
#: Files that describe a repository; no pattern takes them unless it names them.
ABOUT = frozenset(
    {"README.md", "config.json", "dataset_info.json", "dataset_infos.json", "dummy_data.zip", "dataset_dict.json"}
)
#: Words in names of files and folders that tell a split.
WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
#: What may stand between such a word and the rest of a name.
GAP = "[-._ 0-9]"
SHARD = "-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9]"
#: Names by which newer versions of ``datasets`` know datasets of other kinds, before they look for splits.
OTHER_KINDS = ("**/*.eval", "**/task.toml", "**/instruction.md")
_SPLIT = re.compile(r"\w+(\.\w+)*")


class NotDirect(Exception):
    """A dataset that is not read by our own Parquet reader, and why; never leaves this package."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One split of one config.

    Attributes:
        config: its name; None: none was asked for where the card has none.
        split: its name.
        files: paths in the repository, in the order in which they are read.
        info: what the card's ``dataset_info`` has about the config; empty if it has nothing.
    """

    config: str | None
    split: str
    files: tuple[str, ...]
    info: Mapping[str, Any]


def choose(name: str, card: Mapping[str, Any], paths: Iterable[str], config: str | None, split: str) -> Choice:
    """The files of a split.

    Parameters:
        name: of the repository, for messages.
        card: the metadata of its card.
        paths: all files of the repository.
        config, split: what was asked for; None: the default config.

    Raises:
        ConfigError: there is no such config or split; names those there are.
        NotDirect: its files are not plain Parquet, or the card says something about them that is not understood.
    """
    paths = sorted(paths)
    _refuse_scripts(name, paths)
    configs = _configs(card)
    chosen: str | None
    if configs:
        chosen = _config_name(name, configs, config)
        first = next(iter(configs))
        splits = _require_parquet(_splits_of(configs[chosen], paths), listed=True)
        if first != chosen:  # the first one says of what kind all of them are
            _require_parquet(_splits_of(configs[first], paths), listed=True)
    else:
        if config not in (None, "default"):
            raise ConfigError(f"{name} has no config {config!r}, it has only one: leave config out")
        chosen = config
        splits = _require_parquet(_default_splits(paths), listed=False)
    if split not in splits:
        if "[" in split or "+" in split:
            raise ConfigError(f"{name}: split={split!r} must be one of {_names(splits)}; a part of one is for slicing")
        of = f"config {chosen!r} of {name}" if configs else name
        raise ConfigError(f"{of} has no split {split!r}, it has {_names(splits)}{near(split, splits)}")
    files = splits[split]
    if not files:
        raise NotDirect(f"no file fits what its card says about split {split!r}")
    if len(set(files)) < len(files):
        raise NotDirect("a file belongs to its split more than once")
    return Choice(chosen, split, tuple(files), info_of(_infos(card), chosen))


def info_of(infos: Mapping[str, Mapping[str, Any]], config: str | None) -> Mapping[str, Any]:
    """What is known of a config: a single one is meant if none was asked for; empty if there is nothing."""
    if config is None and len(infos) == 1:
        config = next(iter(infos))
    return infos.get(config, {}) if config is not None else {}


def converted_card(paths: Iterable[str]) -> dict[str, Any]:
    """What a card would say of a branch of converted files, which has none: a folder a config, in it one a split.

    ``datasets`` itself takes the configs there for one. Source: "List Parquet files", the dataset viewer's docs.
    """
    found: dict[str, list[str]] = {}
    for path in sorted(paths):
        config, _, rest = path.partition("/")
        split, _, name = rest.partition("/")
        if name.endswith(SUFFIX) and split not in found.setdefault(config, []):
            found[config].append(split)
    return {
        "configs": [
            {
                "config_name": config,
                "data_files": [{"split": split, "path": f"{config}/{split}/*{SUFFIX}"} for split in splits],
            }
            for config, splits in found.items()
        ]
    }


# -- what the card says -----------------------------------------------------------------------


def _configs(card: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    given = card.get("configs")
    if not given:
        return {}
    if not isinstance(given, list) or not all(isinstance(one, dict) and "config_name" in one for one in given):
        raise NotDirect("the configs of its card are no list of configs with names")
    return {str(one["config_name"]): one for one in given}


def _infos(card: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    given = card.get("dataset_info")
    found = given if isinstance(given, list) else [given] if isinstance(given, dict) else []
    return {str(one.get("config_name", "default")): one for one in found if isinstance(one, dict)}


def _config_name(name: str, configs: Mapping[str, Mapping[str, Any]], asked: str | None) -> str:
    if asked is not None:
        if asked not in configs:
            raise ConfigError(f"{name} has no config {asked!r}, it has {_names(configs)}{near(asked, configs)}")
        return asked
    default = [one for one, said in configs.items() if len(configs) == 1 or one == "default" or said.get("default")]
    if len(default) > 1:
        raise NotDirect(f"its card has several default configs: {_names(default)}")
    if not default:
        raise ConfigError(f"{name} has several configs, say which one with config=: {_names(configs)}")
    return default[0]


def _splits_of(config: Mapping[str, Any], paths: Sequence[str]) -> dict[str, list[str]]:
    """The files of each split of a config of the card."""
    if strange := set(config) - PLAIN_KEYS:
        raise NotDirect(f"its card says {sorted(strange)} of config {config['config_name']!r}")
    below = _folder(config.get("data_dir"), paths)
    if config.get("data_files") is None:
        return {split: [below[path] for path in found] for split, found in _default_splits(sorted(below)).items()}
    return {
        split: [below[path] for pattern in patterns for path in _resolve(pattern, below)]
        for split, patterns in _patterns(config["data_files"]).items()
    }


def _folder(folder: Any, paths: Sequence[str]) -> dict[str, str]:
    """Paths below a folder, seen from there: to the whole ones."""
    if not folder:
        return {path: path for path in paths}
    head = f"{_relative(folder).strip('/')}/"
    return {path.removeprefix(head): path for path in paths if path.startswith(head)}


def _patterns(given: Any) -> dict[str, list[str]]:
    """The patterns of each split."""
    if isinstance(given, str):
        return {"train": [_relative(given)]}
    if not isinstance(given, list):
        raise NotDirect(f"data_files of its card are {given!r}")
    if not any(isinstance(one, dict) for one in given):
        return {"train": [_relative(one) for one in given]}
    found: dict[str, list[str]] = {}
    for one in given:
        if not isinstance(one, dict) or set(one) != {"split", "path"} or str(one["split"]) in found:
            raise NotDirect(f"data_files of its card have an entry {one!r}")
        some = one["path"] if isinstance(one["path"], list) else [one["path"]]
        found[str(one["split"])] = [_relative(path) for path in some]
    return found


def _relative(path: Any) -> str:
    """A path or pattern inside the repository."""
    if not isinstance(path, str) or ":" in path or path.startswith("/") or ".." in path.split("/"):
        raise NotDirect(f"its card has files elsewhere: {path!r}")
    return "/".join(part for part in path.split("/") if part not in ("", "."))


# -- what the names say -----------------------------------------------------------------------


def _default_splits(paths: Sequence[str]) -> dict[str, list[str]]:
    """Splits by names: shards in ``data/``, else folders, else files, else everything is "train"."""
    shards = _resolve(f"data/*{SHARD}*.*", paths)
    if shards:
        found = {_shard_split(path) for path in shards}
        order = [split for split in WORDS if split in found] + sorted(found - set(WORDS))
        return {split: _resolve(f"data/{split}{SHARD}*.*", paths) for split in order}
    if any(_resolve(pattern, paths) for pattern in OTHER_KINDS):
        raise NotDirect("it has files of other kinds of datasets than tables")
    for forms in (
        ("**/{}/**", f"**/{{}}{GAP}*/**", f"**/*{GAP}{{}}/**", f"**/*{GAP}{{}}{GAP}*/**"),
        (f"**/{{}}{GAP}*", f"**/*{GAP}{{}}{GAP}*"),
    ):
        splits = {
            split: [path for word in words for form in forms for path in _resolve(form.format(word), paths)]
            for split, words in WORDS.items()
        }
        if any(splits.values()):
            return {split: files for split, files in splits.items() if files}
    return {"train": _resolve("**", paths)}


def _shard_split(path: str) -> str:
    split = re.split(r"-\d{5}-of-\d{5}", path.rpartition("/")[2])[0]
    if not _SPLIT.fullmatch(split):
        raise NotDirect(f"{path!r} names a split {split!r}, which is no name of one")
    return split


def _resolve(pattern: str, paths: Iterable[str]) -> list[str]:
    """Files that a pattern takes, sorted."""
    name = pattern.rpartition("/")[2]
    hidden, special = _marked(pattern, "."), _marked(pattern.rpartition("/")[0], "__")
    return sorted(
        path
        for path in matches(pattern, paths)
        if ((last := path.rpartition("/"))[2] not in ABOUT or last[2] == name)
        and _marked(path, ".") == hidden
        and _marked(last[0], "__") == special
    )


def _marked(path: str, mark: str) -> int:
    """Parts of a path that begin with a mark: they are taken only where the pattern writes them out, too."""
    return sum(part.startswith(mark) for part in path.split("/"))


def matches(pattern: str, paths: Iterable[str]) -> list[str]:
    """Paths that fit: ``*`` and ``?`` inside a part of the path, ``**`` for any number of parts, ``[...]``."""
    if not any(mark in pattern for mark in "*?["):
        return [path for path in paths if path == pattern]
    fits = _compiled(pattern).fullmatch
    return [path for path in paths if fits(path)]


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = pattern.split("/")
    found: list[str] = []
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part == "**":
            found.append(".*" if last else "(?:.+/)?")
            continue
        if "**" in part:
            raise NotDirect(f"its card has a pattern {pattern!r}, where '**' is only a part of a name")
        found.append("[^/]+" if part == "*" else _part(part))
        found.append("" if last else "/")
    return re.compile("".join(found), re.DOTALL)


def _part(part: str) -> str:
    """One part of a path's pattern as a regular expression."""
    found = ""
    at = 0
    while at < len(part):
        mark, at = part[at], at + 1
        end = part.find("]", at + 1 + part.startswith("!", at)) if mark == "[" else -1
        if end >= 0:
            inside = part[at:end].replace("\\", "\\\\").replace("[", "\\[").replace("^", "\\^")
            found += f"[^/{inside[1:]}]" if inside.startswith("!") else f"(?!/)[{inside}]"
            at = end + 1
        else:
            found += {"*": "[^/]*", "?": "[^/]"}.get(mark, re.escape(mark))
    return found


# -- what they are ----------------------------------------------------------------------------


def _refuse_scripts(name: str, paths: Sequence[str]) -> None:
    script = f"{name.rpartition('/')[2]}.py"
    if script in paths:
        raise NotDirect(f"it is made by a script, {script}")
    if ".huggingface.yaml" in paths:
        raise NotDirect("it is described by .huggingface.yaml, too")


def _require_parquet(splits: dict[str, list[str]], *, listed: bool) -> dict[str, list[str]]:
    """The splits' Parquet files.

    Parameters:
        listed: the card has listed them: all that could be data is; else what is not of the most common kind is not.

    Raises:
        NotDirect: there are no such, or others.
    """
    if not any(splits.values()):
        raise NotDirect("it has no data files")
    found: dict[str, list[str]] = {}
    for split, files in splits.items():
        named = [path for path in files if "." in path.rpartition("/")[2]]
        kinds = Counter(kind.lower() for path in named for kind in path.rpartition("/")[2].split(".")[1:])
        most = max(kinds.values(), default=0)
        found[split] = [path for path in named if path.endswith(SUFFIX)]
        others = [path for path in named if not path.endswith(SUFFIX) and (listed or SUFFIX in path.lower())]
        if files and (kinds["parquet"] < most or not kinds["parquet"] or kinds["zip"] or others):
            common = others[0] if others else next((path for path in named if not path.endswith(SUFFIX)), files[0])
            raise NotDirect(f"its files are not all Parquet: {common}")
    return found


def _names(known: Iterable[str]) -> str:
    """Some names, for a message."""
    names = list(known)
    return ", ".join(map(repr, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
