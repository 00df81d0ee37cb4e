"""python -m bitnet_ref.train
python -m bitnet_ref.train --preset tiny
python -m bitnet_ref.train --corpus FOLDER --epochs 1 --linear full
python -m bitnet_ref.train --resume runs/nano-001

Train a BitNet b1.58 (or its full-precision twin) on text. With no arguments: preset nano on the English docs
that every Python carries; ends with validation bits per byte, a sample, pictures and commands to try next.
Read after: train/summary. Read next: bench.
"""

import sys

from bitnet_ref.checks import check
from bitnet_ref.cli import DONE, INTERRUPTED, Parser, add_args, configs, run_command, text, typed
from bitnet_ref.config import PRESETS, ModelConfig, TrainConfig


def main(argv: list[str]) -> int:
    """Parse, start or resume, train, print."""
    parser = Parser("python -m bitnet_ref.train", __doc__)
    parser.add_argument("--preset", type=text, metavar="|".join(PRESETS),
                        help="a named model and its rates (default: nano)")
    parser.add_argument("--config", type=text, metavar="FILE",
                        help="a TOML file, or a run's config.json, over the preset")
    parser.add_argument("--output", type=text, metavar="DIR",
                        help="folder of the run (default: the next free runs/<preset>-NNN)")
    parser.add_argument("--resume", type=text, metavar="RUN", help="go on from a run's newest checkpoint")
    add_args(parser, TrainConfig, "training")
    add_args(parser, ModelConfig, "model")
    args = parser.parse_args(argv)

    # Imported after parsing, so that --help answers at once.
    from bitnet_ref.bench import roofline
    from bitnet_ref.train import loop, start, summary
    if args.resume is not None:
        check(args.preset is args.config is args.output is None, "--resume takes its config from the run",
              "--preset, --config or --output", "leave them out")
        run, data = start.resume(args.resume, {**typed(args, ModelConfig), **typed(args, TrainConfig)})
    else:
        run, data = start.start(*configs(args), args.output)
    print(start.announcement(run, data), file=sys.stderr)
    try:
        loop.train(run, data)
        if run.world.rank == 0:
            print(summary.page(run, summary.finish(run, data, peak=roofline.float32_peak)))
    except KeyboardInterrupt as e:           # between two steps it says where it was saved; else at once
        print(str(e) or "interrupted; go on from the last checkpoint, if there is one, with:\n"
              f"    python -m bitnet_ref.train --resume {run.folder}", file=sys.stderr)
        return INTERRUPTED
    return DONE


if __name__ == "__main__":
    from bitnet_ref.train.parallel import as_one
    sys.exit(as_one(run_command, main))
