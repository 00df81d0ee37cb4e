"""python -m bitnet_ref.generate --model RUN --prompt "..."
python -m bitnet_ref.generate --model RUN --prompt-file FILE --tokens 200 --temperature 0

Continue a text with a trained model. The text streams to stdout.
Read after: generate/language_model. Read next: evaluate.
"""

import sys
from pathlib import Path

from bitnet_ref.checks import CheckError
from bitnet_ref.cli import DONE, Parser, add_backend, add_int8_head, run_command, text


def main(argv: list[str]) -> int:
    """Parse, load, stream."""
    parser = Parser("python -m bitnet_ref.generate", __doc__)
    parser.add_argument("--model", type=text, required=True, metavar="RUN",
                        help="folder of a training run, or one checkpoint in it")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", default="", help="the text to continue (default: empty)")
    prompts.add_argument("--prompt-file", type=text, metavar="FILE",
                         help="read the prompt from a UTF-8 file; - is stdin")
    parser.add_argument("--tokens", type=int, default=100, help="tokens to generate (default: 100)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (default: 0.8)")
    parser.add_argument("--top-k", type=int, default=40,
                        help="draw among the k likeliest tokens (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same text (default: 0)")
    add_backend(parser)
    add_int8_head(parser)
    args = parser.parse_args(argv)

    # Imported after parsing, so that --help answers at once.
    from bitnet_ref.generate.decode import check_options
    from bitnet_ref.generate.language_model import load
    check_options(args.tokens, args.temperature, args.top_k, args.seed)
    prompt = args.prompt if args.prompt_file is None else read_prompt(args.prompt_file)
    model = load(args.model, args.backend, args.threads, args.int8_head)
    pieces = model.stream(prompt, args.tokens, args.temperature, args.top_k, args.seed)
    first = next(pieces, "")                               # what is wrong is said before anything is printed
    print(prompt + first, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return DONE


def read_prompt(path: str) -> str:
    """The text of a UTF-8 file, or of stdin for "-"."""
    try:
        return (sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()).decode("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise CheckError(f"the prompt file must be readable UTF-8 text; got {e}; give another file") from None


if __name__ == "__main__":
    sys.exit(run_command(main))
