"""Arguments that the commands share, and opening a dataset from them.

Not here: what a command does with the dataset.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING, Any

from lazystore.errors import ConfigError

if TYPE_CHECKING:
    from lazystore import StreamingDataset

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["add_command", "add_dataset_options", "dataset_arguments", "open_dataset", "pair", "positive"]


def add_command(commands: Subparsers, name: str, summary: str, text: str, *examples: str) -> argparse.ArgumentParser:
    """A command with its help: what it does, its options, examples."""
    return commands.add_parser(
        name,
        help=summary,
        description=text,
        epilog="\n".join(["examples:", *(f"  {example}" for example in examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_dataset_options(command: argparse.ArgumentParser, *, decodes: bool) -> None:
    """Options that say how a dataset is reached and understood.

    Parameters:
        decodes: the command decodes items.
    """
    group = command.add_argument_group("the dataset")
    group.add_argument("--memory", metavar="SIZE", help="byte budget, e.g. 64MB (default: the library's)")
    group.add_argument("--format", metavar="NAME", help="the format, where it is not to be recognised")
    group.add_argument(
        "--format-option", metavar="KEY=VALUE", action="append", default=[], type=pair,
        help="a setting of the format (repeatable); values that are JSON are taken as such",
    )  # fmt: skip
    group.add_argument(
        "--storage-option", metavar="KEY=VALUE", action="append", default=[], type=pair,
        help="credentials and client settings (repeatable), e.g. anon=true",
    )  # fmt: skip
    group.add_argument(
        "--storage-options",
        metavar="JSON",
        type=_json_object,
        default={},
        help="the same as JSON, e.g. '{\"anon\": true}'",
    )
    group.add_argument("--encryption-key", metavar="PATH", help="file with the key of an encrypted dataset")
    group.add_argument(
        "--password-env", metavar="NAME", help="environment variable that holds the key's password (never given here)"
    )
    if decodes:
        group.add_argument(
            "--allow-pickle", action="store_true", help="unpickle pickled leaves, which runs code from the dataset"
        )


def dataset_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of :class:`~lazystore.StreamingDataset`: those that were given."""
    found: dict[str, Any] = {}
    if arguments.memory is not None:
        found["memory"] = arguments.memory
    if arguments.format is not None:
        found["format"] = arguments.format
    if arguments.format_option:
        found["format_options"] = dict(arguments.format_option)
    storage = {**arguments.storage_options, **dict(arguments.storage_option)}
    if storage:
        found["storage_options"] = storage
    if arguments.encryption_key is not None:
        found["encryption"] = _encryption(arguments.encryption_key, arguments.password_env)
    elif arguments.password_env is not None:
        raise ConfigError("--password-env needs --encryption-key, the file that the password opens")
    if getattr(arguments, "allow_pickle", False):
        found["allow_pickle"] = True
    return found


def open_dataset(arguments: argparse.Namespace, url: str, **more: Any) -> StreamingDataset:
    """The dataset, all of it in stored order, whatever launcher's variables are set in this shell."""
    import lazystore

    return lazystore.StreamingDataset(url, rank=0, world_size=1, **{**dataset_arguments(arguments), **more})


def positive(text: str) -> int:
    """A number from 1 on, for argparse."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def _encryption(path: str, variable: str | None) -> Any:
    from lazystore.formats.encryption import FernetEncryption

    if variable is None:
        raise ConfigError("--encryption-key needs --password-env NAME: the variable that holds the key's password")
    password = os.environ.get(variable)
    if password is None:
        raise ConfigError(f"--password-env {variable}: there is no such environment variable; set it to the password")
    return FernetEncryption.load(path, password)


def pair(text: str) -> tuple[str, Any]:
    """``KEY=VALUE``, for argparse; a value that is JSON is taken as such."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} does not read KEY=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value
