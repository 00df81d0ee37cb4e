"""python -m bitnet_ref.train
python -m bitnet_ref.train --preset tiny
python -m bitnet_ref.train --corpus FOLDER --epochs 1 --linear full
python -m bitnet_ref.train --resume runs/nano-001

Train a BitNet b1.58 (or its full-precision twin) on text. With no arguments: preset nano on the English docs
that every Python carries; ends with validation bits per byte, a sample, pictures and commands to try next.
Read after: train/summary. Read next: bench.
"""

import argparse
import sys

from bitnet_ref.checks import check
from bitnet_ref.cli import DONE, INTERRUPTED, add_args, configs, run_command, typed
from bitnet_ref.config import PRESETS, ModelConfig, TrainConfig


def main(argv: list[str]) -> int:
    """Parse, start or resume, train, print."""
    parser = argparse.ArgumentParser(prog="python -m bitnet_ref.train", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", metavar="|".join(PRESETS),
                        help="a named model and its rates (default: nano)")
    parser.add_argument("--config", metavar="FILE",
                        help="a TOML file, or a run's config.json, over the preset")
    parser.add_argument("--output", metavar="DIR",
                        help="folder of the run (default: the next free runs/<preset>-NNN)")
    parser.add_argument("--resume", metavar="RUN", help="go on with a run from its newest checkpoint")
    add_args(parser, TrainConfig, "training")
    add_args(parser, ModelConfig, "model")
    args = parser.parse_args(argv)

    # Imported after parsing, so that --help answers at once.
    from bitnet_ref.train import loop, start, summary
    if args.resume:
        check(not (args.preset or args.config or args.output), "--resume takes its config from the run",
              "--preset, --config or --output", "leave them out")
        run, data = start.resume(args.resume, {**typed(args, ModelConfig), **typed(args, TrainConfig)})
    else:
        run, data = start.start(*configs(args), args.output)
    print(f"{run.folder}: {run.grads.flat.size:,} parameters, {run.cfg.steps} steps from {run.step}, "
          f"{len(data.train.tokens):,} training tokens", file=sys.stderr)
    try:
        loop.train(run, data)
    except loop.Interrupted as e:
        print(e, file=sys.stderr)
        return INTERRUPTED
    print(summary.page(run, summary.finish(run, data)))
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
