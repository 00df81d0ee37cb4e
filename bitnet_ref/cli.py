"""Dataclass -> command line: flags, help, defaults and types come from the config's fields.

Only what was typed overrides; the order is preset, then `--config FILE` (TOML, or the config.json that a run
wrote), then the command line.
Exit codes: 0 done, 1 a check failed, 2 bad arguments or input, 130 interrupted.
Read after: model/cost. Read next: data.
"""

import argparse
import json
import sys
import tomllib
import types
import typing
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from bitnet_ref.checks import CheckError, check, lookup
from bitnet_ref.config import PRESETS, ModelConfig, TrainConfig

DONE, CHECK_FAILED, BAD_ARGUMENTS, INTERRUPTED = 0, 1, 2, 130


def value_type(annotation: Any) -> type:
    """`int | None` -> int, `int` -> int."""
    if isinstance(annotation, types.UnionType):
        return next(t for t in typing.get_args(annotation) if t is not types.NoneType)
    return annotation


def add_args(parser: argparse.ArgumentParser, config: type, title: str) -> None:
    """One flag per field of the dataclass `config`. A flag that is not typed leaves no attribute behind."""
    group = parser.add_argument_group(title)
    for f in fields(config):
        kind = value_type(f.type)
        default = "none" if f.default is None else f.default
        help = f"{f.metadata['help']} (default: {default})".replace("%", "%%")
        how: dict[str, Any] = (
            {"action": argparse.BooleanOptionalAction} if kind is bool
            else {"type": kind, "metavar": f.metadata["sym"] or kind.__name__.upper()})
        if f.metadata["choices"]:
            how["metavar"] = "|".join(f.metadata["choices"])
        group.add_argument("--" + f.name.replace("_", "-"), default=argparse.SUPPRESS, help=help, **how)


def typed(args: argparse.Namespace, config: type) -> dict[str, Any]:
    """The fields of `config` that stand on the command line."""
    return {f.name: getattr(args, f.name) for f in fields(config) if hasattr(args, f.name)}


def read_config_file(path: str) -> dict[str, dict[str, Any]]:
    """{"model": {...}, "train": {...}} from TOML or from a run's config.json. Unknown names are refused."""
    file = Path(path)
    check(file.is_file(), "--config must name a file", path,
          "give the path of a .toml or of a run's config.json")
    try:
        text = file.read_text(encoding="utf-8")
        tables = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except (ValueError, OSError) as e:
        raise CheckError(f"--config must be valid TOML or JSON; got {e} in {path}; "
                         "correct the file") from None
    check(isinstance(tables, dict), "a config file must hold tables", type(tables).__name__,
          "see docs/training.md")
    for table, values in tables.items():
        if table == "preset":
            check(isinstance(values, str), "preset must be a name", repr(values), "write preset = \"nano\"")
            continue
        config = lookup({"model": ModelConfig, "train": TrainConfig}, table, f"a table of {path}")
        check(isinstance(values, dict), f"[{table}] must be a table", repr(values),
              f"write [{table}] and name = value")
        annotations = {f.name: f.type for f in fields(config)}
        for name, value in values.items():
            kind = value_type(lookup(annotations, name, f"a name in [{table}]"))
            fits = (isinstance(annotations[name], types.UnionType) if value is None
                    else type(value) is kind or (kind is float and type(value) is int))
            check(fits, f"{table}.{name} must be {kind.__name__}", repr(value), "correct the value")
    return tables


def configs(args: argparse.Namespace) -> tuple[str, ModelConfig, TrainConfig]:
    """(preset name, model, train): preset, then --config, then what was typed."""
    check(not (hasattr(args, "steps") and hasattr(args, "epochs")), "a run has --steps or --epochs", "both",
          "leave one out")
    tables: dict[str, Any] = read_config_file(args.config) if getattr(args, "config", None) else {}
    name = getattr(args, "preset", None) or tables.get("preset", "nano")
    preset = lookup(PRESETS, name, "preset")
    model = replace(preset.model, **{**tables.get("model", {}), **typed(args, ModelConfig)})
    given = {**tables.get("train", {}), **typed(args, TrainConfig)}
    if hasattr(args, "steps"):
        given["epochs"] = None                               # what was typed wins over the file's epochs
    return name, model, replace(preset.train, **given)


def run_command(command: Callable[[list[str]], int], argv: list[str] | None = None) -> int:
    """Run `command`. Bad input is one line on stderr and exit code 2, Ctrl-C is 130: never a traceback."""
    try:
        return command(sys.argv[1:] if argv is None else argv)
    except CheckError as e:
        print(f"error: {e}", file=sys.stderr)
        return BAD_ARGUMENTS
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:                                # `... | head` closed stdout: not an error of ours
        sys.stderr.close()
        return DONE
