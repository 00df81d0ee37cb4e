"""Dataclass -> command line: flags, help, defaults and types come from the config's fields.

Only what was typed overrides; the order is preset, then `--config FILE` (TOML, or the config.json that a run
wrote), then the command line.
Exit codes: 0 done, 1 a check failed, 2 bad arguments or input, 130 interrupted, 129 and 143 ended by
SIGHUP and SIGTERM.
Read after: model/scaling. Read next: data.
"""

import argparse
import io
import json
import re
import signal
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from bitnet_ref.checks import CheckError, check, lookup
from bitnet_ref.config import PRESETS, ModelConfig, TrainConfig, check_types, value_type

DONE, CHECK_FAILED, BAD_ARGUMENTS, INTERRUPTED = 0, 1, 2, 130

# What argparse says is wrong, and the first two parts of how we say it.
WORDS = (
    (r"argument (\S+): invalid int value: (.*)", r"\1 must be an int; got \2"),
    (r"argument (\S+): invalid float value: (.*)", r"\1 must be a float; got \2"),
    (r"argument (\S+): must not be empty", r"\1 must not be empty; got ''"),
    (r"argument (\S+): expected one argument", r"\1 must have a value; got none"),
    (r"argument (\S+): not allowed with argument (\S+)", r"\1 must stand without \2; got both"),
    (r"the following arguments are required: (.*)", r"\1 must be given; got nothing"),
    (r"unrecognized arguments: (.*)", r"every flag must be known; got \1"),
    (r"(.*)", r"the command line must be valid; got \1"),
)


class Parser(argparse.ArgumentParser):
    """The parser of every command: `--help` is the module's docstring, errors are three-part CheckErrors."""

    def __init__(self, prog: str, description: str | None) -> None:
        shown = re.sub(r"\n*Read after: .*", "", description or "", flags=re.DOTALL)    # for readers of code
        super().__init__(prog=prog, description=shown, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Raise CheckError instead of printing the usage and ending the process."""
        line = message.replace("\n", " ")
        said = next(m.expand(ours) for theirs, ours in WORDS if (m := re.fullmatch(theirs, line)))
        raise CheckError(f"{said}; see {self.prog} --help")


def text(value: str) -> str:
    """The `type` of a flag that takes a name or a path: any text but none.

    >>> text("runs/nano-001")
    'runs/nano-001'
    """
    if not value:
        raise argparse.ArgumentTypeError("must not be empty")
    return value


def add_args(parser: argparse.ArgumentParser, config: type, title: str,
             usual: dict[str, Any] | None = None) -> None:
    """One flag per field of the dataclass `config`. A flag that is not typed leaves no attribute behind.

    usual: {field: what the command takes instead of the default of `config`}, for the help.

    >>> parser = Parser("info", "")
    >>> add_args(parser, ModelConfig, "model")
    >>> parser.parse_args(["--n-layers", "6", "--no-tied-embeddings"])
    Namespace(n_layers=6, tied_embeddings=False)
    """
    group = parser.add_argument_group(title)
    for f in fields(config):
        kind = value_type(f.type)
        default = (usual or {}).get(f.name, "none" if f.default is None else f.default)
        help = f"{f.metadata['help']} (default: {default})".replace("%", "%%")
        how: dict[str, Any] = (
            {"action": argparse.BooleanOptionalAction} if kind is bool
            else {"type": text if kind is str else kind,
                  "metavar": f.metadata["sym"] or kind.__name__.upper()})
        if f.metadata["choices"]:
            how["metavar"] = "|".join(f.metadata["choices"])
        group.add_argument("--" + f.name.replace("_", "-"), default=argparse.SUPPRESS, help=help, **how)


def add_backend(parser: argparse.ArgumentParser) -> None:
    """--backend and --threads, for commands that run a model.

    >>> parser = Parser("evaluate", "")
    >>> add_backend(parser)
    >>> parser.parse_args(["--threads", "2"])
    Namespace(backend='numba', threads=2)
    """
    parser.add_argument("--backend", type=text, default="numba",
                        help="implementation of the ops (default: numba)")
    parser.add_argument("--threads", type=int, help="threads to run with (default: all processors)")


def add_int8_head(parser: argparse.ArgumentParser) -> None:
    """--int8-head, for commands that only run a model.

    >>> parser = Parser("evaluate", "")
    >>> add_int8_head(parser)
    >>> parser.parse_args([]).int8_head
    False
    """
    parser.add_argument("--int8-head", action="store_true",
                        help="read a full-precision output projection as int8 rows: faster, a little rounded")


def add_generation(parser: argparse.ArgumentParser, tokens: int) -> None:
    """--model, --tokens, what ends a text, the fields of Sampling, and the backend's flags.

    >>> parser = Parser("chat", "")
    >>> add_generation(parser, tokens=100)
    >>> args = parser.parse_args(["--model", "nano.bitnet", "--top-k", "5"])
    >>> args.model, args.tokens, args.top_k
    ('nano.bitnet', 100, 5)
    """
    from bitnet_ref.generate.sampling import Sampling

    parser.add_argument("--model", type=text, required=True, metavar="MODEL",
                        help="a run, a Hugging Face folder or name, a .bitnet or .gguf file")
    parser.add_argument("--i2s", type=text, metavar="128|64|4row", help="layout of the I2_S in a .gguf")
    parser.add_argument("--tokens", type=int, default=tokens, help=f"tokens to generate (default: {tokens})")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT",
                        help="end before this text; may be given several times")
    parser.add_argument("--stop-id", type=int, action="append", default=[], metavar="N",
                        help="end at this token id too; may be given several times")
    parser.add_argument("--no-ends", dest="ends", action="store_false",
                        help="go on at the ids that end a text or a turn by the model's word")
    parser.add_argument("--chain", type=text, default="auto", metavar="auto|off|table|lookup|refreshed|FILE",
                        help="who guesses ahead: the same text, sooner (docs/speculative.md; default: auto)")
    add_args(parser, Sampling, "sampling (defaults of its own that a model brings come before these)")
    add_backend(parser)
    add_int8_head(parser)
    parser.add_argument("--half-cache", action="store_true",
                        help="keep keys and values in float16: half the memory, a little rounded")


def loading(args: argparse.Namespace) -> tuple[Any, ...]:
    """What add_generation's flags say to generate.language_model.load, in its order.

    >>> parser = Parser("chat", "")
    >>> add_generation(parser, tokens=100)
    >>> loading(parser.parse_args(["--model", "nano.bitnet", "--backend", "numpy"]))
    ('numpy', None, False, False, None, 'auto')
    """
    return args.backend, args.threads, args.int8_head, args.half_cache, args.i2s, args.chain


def typed(args: argparse.Namespace, config: type) -> dict[str, Any]:
    """The fields of `config` that stand on the command line.

    >>> parser = Parser("info", "")
    >>> add_args(parser, ModelConfig, "model")
    >>> typed(parser.parse_args(["--n-layers", "6"]), ModelConfig)       # the other fields stay a preset's
    {'n_layers': 6}
    """
    return {f.name: getattr(args, f.name) for f in fields(config) if hasattr(args, f.name)}


def read_config_file(path: str) -> dict[str, dict[str, Any]]:
    """{"model": {...}, "train": {...}} from TOML or from a run's config.json. Unknown names are refused.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (path := Path(folder, "mine.toml")).write_text("[model]\\nn_layers = 6\\n")
    ...     read_config_file(str(path))
    {'model': {'n_layers': 6}}
    """
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
        check_types(config, values, table)
    return tables


def configs(args: argparse.Namespace) -> tuple[str, ModelConfig, TrainConfig]:
    """(preset name, model, train): preset, then --config, then what was typed.

    >>> name, model, train = configs(argparse.Namespace(preset="tiny", n_layers=3))
    >>> name, model.n_layers, model.d_model, train.steps
    ('tiny', 3, 64, 1000)
    """
    check(not (hasattr(args, "steps") and hasattr(args, "epochs")), "a run has --steps or --epochs", "both",
          "leave one out")
    tables: dict[str, Any] = {}
    if getattr(args, "config", None) is not None:
        tables = read_config_file(args.config)
    name = getattr(args, "preset", None)
    if name is None:
        name = tables.get("preset", "nano")
    preset = lookup(PRESETS, name, "preset")
    model = replace(preset.model, **{**tables.get("model", {}), **typed(args, ModelConfig)})
    given = {**tables.get("train", {}), **typed(args, TrainConfig)}
    if hasattr(args, "steps"):
        given["epochs"] = None                               # what was typed wins over the file's epochs
    return name, model, replace(preset.train, **given)


def run_command(command: Callable[[list[str]], int], argv: list[str] | None = None) -> int:
    """Run `command`. Bad input is one line on stderr and exit code 2, Ctrl-C is 130: never a traceback.

    >>> def command(argv):
    ...     check(not argv, "there must be no arguments", argv, "leave them out")
    ...     return DONE
    >>> run_command(command, []), run_command(command, ["--what"])       # the second says why, on stderr
    (0, 2)
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")           # a terminal without our letters shows ? for them
    try:
        try:
            with _endings():
                return command(sys.argv[1:] if argv is None else argv)
        finally:
            if sys.stdout is not None:                     # None: closed by the shell
                sys.stdout.flush()
    except CheckError as e:
        return _fail(str(e))
    except MemoryError as e:
        return _fail(f"the model and batch must fit in memory; got {str(e) or 'no more memory'}; "
                     "use a smaller --batch, --context or model")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Ended as e:
        return int(str(e))
    except BrokenPipeError:                                # `... | head` closed stdout: not an error of ours
        _close(sys.stdout)
        _close(sys.stderr)
        return DONE
    except OSError as e:
        _close(sys.stdout)
        return _fail(f"{e.filename or 'the output'} must be accessible; got {e.strerror or e}; "
                     "free space, or check the path and its rights")


class Ended(SystemExit):
    """A signal asked the process to end: what is half written is removed first. `code` says which."""


@contextmanager
def _endings() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise Ended, unless somebody has decided about them (nohup)."""
    def handler(number: int, frame: FrameType | None) -> None:
        raise Ended(128 + number)

    mine = threading.current_thread() is threading.main_thread()      # only it may have handlers
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ours = [n for n in numbers if mine and signal.getsignal(n) is signal.SIG_DFL]
    for n in ours:
        signal.signal(n, handler)
    try:
        yield
    finally:
        for n in ours:
            signal.signal(n, signal.SIG_DFL)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return BAD_ARGUMENTS


def _close(stream: Any) -> None:
    """Close what cannot be written to, or the interpreter complains about it at exit."""
    with suppress(OSError, AttributeError):
        stream.close()
