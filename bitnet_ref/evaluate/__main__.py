"""python -m bitnet_ref.evaluate --model RUN
python -m bitnet_ref.evaluate --model RUN --corpus wikitext-2 --json

Perplexity and bits per byte of a trained model, on the run's own validation text or on another corpus, with
the number of tokens and bytes that were counted. Exit code 1 if the model is worse than guessing: no
perplexity is printed then.
Read after: evaluate/sandbox. Read next: train.
"""

import json
import sys

from bitnet_ref.cli import CHECK_FAILED, DONE, Parser, add_backend, add_int8_head, run_command, text


def main(argv: list[str]) -> int:
    """Parse, load, score, print."""
    parser = Parser("python -m bitnet_ref.evaluate", __doc__)
    parser.add_argument("--model", type=text, required=True, metavar="RUN",
                        help="folder of a training run, or one checkpoint in it")
    parser.add_argument("--corpus", type=text, help="a named corpus, or a file, folder or glob "
                                                    "(default: the run's validation text)")
    parser.add_argument("--windows", type=int,
                        help="score at most this many windows, evenly spaced (default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_backend(parser)
    add_int8_head(parser)
    args = parser.parse_args(argv)

    from bitnet_ref.evaluate.corpus import score_corpus
    result = score_corpus(args.model, args.corpus, args.windows, args.backend, args.threads,
                          args.int8_head)
    figures = {"loss": result.loss, "perplexity": result.perplexity, "bits per byte": result.bits_per_byte,
               "tokens": result.tokens, "bytes": result.bytes}
    if args.json:
        print(json.dumps(figures))
    else:
        perplexity = f"{result.perplexity:.3f}" if result.perplexity is not None else (
            f"none: a loss above log({result.vocab_size}) means worse than guessing; "
            "is this the right tokenizer and model?")
        print(f"perplexity      {perplexity}\nbits per byte   {result.bits_per_byte:.4f}\n"
              f"loss            {result.loss:.4f} nats per token\n"
              f"counted         {result.tokens:,} tokens, {result.bytes:,} bytes")
    return DONE if result.perplexity is not None else CHECK_FAILED


if __name__ == "__main__":
    sys.exit(run_command(main))
