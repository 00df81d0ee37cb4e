"""python -m bitnet_ref.generate --model MODEL "A module is"
python -m bitnet_ref.generate --model MODEL --prompt-file FILE --tokens 200 --temperature 0
python -m bitnet_ref.generate --model MODEL --json --stop END - < FILE

Continue a text with a model. The text streams to stdout, or comes as one JSON object (docs/generation.md).
Read after: generate/prompt. Read next: generate/render.
"""

import json
import sys
from argparse import BooleanOptionalAction

from bitnet_ref.cli import DONE, Parser, add_generation, loading, run_command, text, typed
from bitnet_ref.generate.prompt import read_prompt
from bitnet_ref.generate.sampling import Sampling


def main(argv: list[str]) -> int:
    """Parse, load, stream.

    >>> from bitnet_ref.formats.example import written
    >>> with written("bitnet", vocab_size=257) as path:
    ...     code = main(f"--model {path} --backend numpy --tokens 3 --top-k 1 A".split())
    AAAA
    """
    parser = Parser("python -m bitnet_ref.generate", __doc__)
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("given", nargs="?", metavar="PROMPT", help="the text to continue; - is stdin")
    prompts.add_argument("--prompt", help="the same as a flag, never stdin (default: empty)")
    prompts.add_argument("--prompt-file", type=text, metavar="FILE",
                         help="read the prompt from a UTF-8 file; - is stdin")
    parser.add_argument("--stream", action=BooleanOptionalAction, default=True,
                        help="print each piece as it comes (default: yes)")
    parser.add_argument("--json", action="store_true", help="print one JSON object when all is there")
    add_generation(parser, 100)
    args = parser.parse_args(argv)

    # Imported after parsing, so that --help answers at once.
    from bitnet_ref import kernels
    from bitnet_ref.generate.language_model import check_options, load
    check_options(args.tokens, args.stop, args.stop_id, typed(args, Sampling), args.chain)
    prompt = read_prompt(args.given, args.prompt, args.prompt_file)
    model = load(args.model, *loading(args))
    made = model.continuation(prompt, args.tokens, model.sampling_with(typed(args, Sampling)), args.stop,
                              args.json, args.stop_id, args.ends)
    first = next(made, "")                                 # what is wrong is said before anything is printed
    if args.json:
        list(made)
        ran = kernels.about(args.backend) | {"int8_head": args.int8_head, "half_cache": args.half_cache}
        print(json.dumps(made.record() | {"prompt": prompt, "backend": ran}, indent=1, allow_nan=False))
        return DONE
    print(prompt + first, end="", flush=True)
    for piece in made if args.stream else ["".join(made)]:
        print(piece, end="", flush=True)
    print()
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
