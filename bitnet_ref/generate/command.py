"""What the commands generate and chat share: their flags, the prompt, and what a result was computed with.

Read after: generate/language_model. Read next: generate/__main__.
"""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from bitnet_ref.checks import CheckError
from bitnet_ref.cli import Parser, add_args, add_backend, add_int8_head, text
from bitnet_ref.generate.sampling import Sampling


def add_generation(parser: Parser, tokens: int) -> None:
    """--model, --tokens, --stop, the fields of Sampling, and the backend's flags."""
    parser.add_argument("--model", type=text, required=True, metavar="MODEL",
                        help="folder of a training run, one checkpoint in it, or a published model")
    parser.add_argument("--tokens", type=int, default=tokens, help=f"tokens to generate (default: {tokens})")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT",
                        help="end before this text; may be given several times")
    add_args(parser, Sampling, "sampling (defaults of its own that a model brings come before these)")
    add_backend(parser)
    add_int8_head(parser)


def read_prompt(given: str | None, flag: str | None, file: str | None) -> str:
    """The prompt as typed, or the text of a UTF-8 file, or of stdin where file or the typed word is "-".

    Raises CheckError for what cannot be read, or is no UTF-8.
    """
    if file is None and given != "-":
        return given or flag or ""
    try:
        data = Path(file).read_bytes() if file not in (None, "-") else sys.stdin.buffer.read()
        return data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise CheckError(f"the prompt file must be readable UTF-8 text; got {e}; give another file") from None


def backend_of(args: Namespace) -> dict[str, Any]:
    """Backend, instructions, threads and head, for a result that is kept."""
    from bitnet_ref.kernels import about

    return about(args.backend) | {"int8_head": args.int8_head}
