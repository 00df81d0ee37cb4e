"""python -m bitnet_ref.chat --model MODEL
python -m bitnet_ref.chat --model MODEL --system "You are brief." --template 2b4t

Talk with a model. Lines that begin with / are commands (/help lists them); Ctrl-C ends a reply, Ctrl-D the
chat. docs/generation.md says which template is used, and what is forgotten when the context is full.
Read after: generate/example. Read next: evaluate.
"""

import sys
from typing import Any

from bitnet_ref.cli import DONE, Parser, add_generation, loading, run_command, text, typed
from bitnet_ref.generate.sampling import Sampling


def main(argv: list[str]) -> int:
    """Parse, load, talk.

    >>> import io
    >>> from unittest.mock import patch
    >>> from bitnet_ref.formats.example import written
    >>> typed_in = io.TextIOWrapper(io.BytesIO(b"Hi\\n/quit\\n"))
    >>> with written("bitnet", vocab_size=257) as path, patch("sys.stdin", typed_in):
    ...     code = main(f"--model {path} --backend numpy --tokens 3 --top-k 1".split())
    :::
    """
    parser = Parser("python -m bitnet_ref.chat", __doc__)
    parser.add_argument("--system", default="", metavar="TEXT", help="what is said before everything else")
    parser.add_argument("--template", type=text, default="auto", metavar="auto|own|2b4t|plain",
                        help="how messages become tokens (default: the model's own, or what suits its shape)")
    add_generation(parser, 512)
    args = parser.parse_args(argv)

    # Imported after parsing, so that --help answers at once.
    from bitnet_ref.generate.conversation import Conversation, check_text
    from bitnet_ref.generate.language_model import check_options, load
    from bitnet_ref.generate.prompt import stdin
    from bitnet_ref.generate.repl import talk
    from bitnet_ref.generate.template import check_name, choose
    given: dict[str, Any] = typed(args, Sampling)
    check_options(args.tokens, args.stop, args.stop_id, given, args.chain)
    check_name(args.template)
    check_text(args.system)
    stdin()
    model = load(args.model, *loading(args))
    template = choose(args.template, model.about.chat_template, model.cfg, model.tokenizer)
    how = model.sampling_with(given)
    ends = model.ends_with(args.stop_id, args.ends)
    talk(Conversation(model, template, how, args.tokens, args.stop, args.system, ends), print)
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
