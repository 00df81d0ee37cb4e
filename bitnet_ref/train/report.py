"""python -m bitnet_ref.train.report RUN

Write RUN/report.html: one page of figures and pictures of a run, finished or not. It asks no host for
anything, fits a telephone, and is dark where the reader's system is. Training writes it at its end; this
command writes it of a run that goes on or was stopped.
Read after: train/plots. Read next: train/summary.
"""

import shlex
import sys
from pathlib import Path
from typing import Any

from bitnet_ref.checks import CheckError
from bitnet_ref.cli import DONE, Parser, run_command, text
from bitnet_ref.config import ModelConfig, TrainConfig, from_dict
from bitnet_ref.data.atomic import whole_file
from bitnet_ref.train import log
from bitnet_ref.train.log import SUMMARY
from bitnet_ref.train.measures import tokens_per_second

REPORT, CONFIG = "report.html", "config.json"
TEMPLATE = Path(__file__).with_name("report.html.jinja")
STYLE = Path(__file__).with_name("report.css")            # of every page that this project writes
EVENTS = 200                 # of the newest, shown


def write(run: Path, pictures: dict[str, str]) -> Path:
    """Write the page of the run in folder `run`; `pictures`: SVG elements by name. Returns its path.

    Raises CheckError for files of the run that training did not write, and where the disk refuses.
    >>> from bitnet_ref.train.small import small_run
    >>> run, _ = small_run(); page = write(run.folder, {"loss": "<svg></svg>"})
    >>> page.name, "<svg></svg>" in page.read_text(encoding="utf-8")
    ('report.html', True)
    """
    html = rendered(TEMPLATE, content(run), pictures)
    with whole_file(run / REPORT) as file:
        file.write(html.encode("utf-8", "replace"))
    return run / REPORT


def rendered(template: Path, names: dict[str, Any], pictures: dict[str, str]) -> str:
    """A page of HTML in the style of STYLE. All but `pictures`, SVG elements by name, is escaped.
    >>> import tempfile; folder = tempfile.TemporaryDirectory(); template = Path(folder.name) / "page"
    >>> _ = template.write_text("<p>{{ said }}</p>")
    >>> rendered(template, {"said": "1 < 2"}, pictures={})
    '<p>1 &lt; 2</p>'
    """
    from jinja2 import Environment
    from markupsafe import Markup

    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True,
                       finalize=lambda value: value if isinstance(value, Markup) else printable(str(value)))
    ours = {"style": Markup(STYLE.read_text(encoding="utf-8")),           # the only text not escaped
            "pictures": [Markup(svg) for svg in pictures.values()]}
    return page.from_string(template.read_text(encoding="utf-8")).render(names, **ours)


def content(run: Path) -> dict[str, Any]:
    """What the page says: the names that report.html.jinja uses.
    >>> from bitnet_ref.train.small import small_run
    >>> run, _ = small_run(); page = content(run.folder)
    >>> page["name"], page["finished"], page["model"]["d_model"]
    ('run', False, 16)
    """
    config, summary, lines = log.read_object(run / CONFIG), log.read_object(run / SUMMARY), log.read(run)
    done = max((line["step"] for line in lines), default=0)
    model = from_dict(ModelConfig, config.get("model"), f"{run / CONFIG}: model")
    train = from_dict(TrainConfig, config.get("train"), f"{run / CONFIG}: train")
    try:
        return {"run": str(run), "name": run.resolve().name, "quoted": shlex.quote, "done": done,
                "finished": bool(summary), "preset": config.get("preset", ""), "model": vars(model),
                "train": vars(train), "machine": dict(summary.get("machine", {})),
                "verdict": summary.get("verdict", ""), "headline": _headline(lines, summary),
                "sample": summary.get("sample", ""),
                "events": [line for line in lines if line["kind"] == "event"][-EVENTS:]}
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise CheckError(f"{run / SUMMARY} must be as training wrote it; got {e!r}; "
                         "restore it from a copy, or delete it and resume the run") from None


def _headline(lines: list[dict[str, Any]], summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(figure, its name, what it means), those that the run has."""
    found = []
    evals = [line["loss"] for line in lines if line["kind"] == "eval"]
    if summary:
        found = [(f"{summary['validation loss']:.4f}", "validation loss", "nats per token, all of the text"),
                 (f"{summary['bits per byte']:.3f}", "bits per byte", "compares across tokenizers")]
        if summary["perplexity"] is not None:
            found.append((f"{summary['perplexity']:.2f}", "perplexity", "compares within one tokenizer"))
        found += [(f"{value:.3f}", f"bits per byte of {name}", "given the training text first")
                  for name, value in summary["others, bits per byte"].items()]
        if "compression" in summary:
            found.append((f"{summary['compression']['tokens saved']:.1%}", "tokens saved", "by --compress"))
    elif evals:
        found = [(f"{evals[-1]:.4f}", "validation loss", "nats per token, the last within the run")]
    return found + _layers([line for line in lines if line["kind"] == "layers"]) + _pace(lines, summary)


def _layers(lines: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    last = [m for m in lines[-1]["layers"].values() if "near" in m] if lines else []
    return [(f"{sum(m[name] for m in last) / len(last):.1%}", title, "mean of the matrices, last log line")
            for name, title in (("zero", "zeros"), ("flipped", "trits flipped"), ("near", "near a threshold"))
            if last]


def _pace(lines: list[dict[str, Any]], summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    steps = [line for line in lines if line["kind"] == "step"]
    pace = tokens_per_second(steps)
    if pace is None:
        return []
    tokens = sum(line.get("tokens", 0) for line in steps)
    found = [(f"{tokens:,}", "tokens trained", "of the steps in the log"),
             (f"{pace:,.0f}", "tokens per second", "median of the steps")]
    speed = summary.get("speed") or {}
    if speed.get("utilisation") is not None:
        found.append((f"{speed['utilisation']:.1%}", "model FLOPs utilisation",
                      f"of {speed['peak'] / 1e9:,.0f} Gop/s in float32, measured at the end"))
    return found


def printable(text: str) -> str:
    """`text` with control characters, which an untrained model may write, shown as U+FFFD.
    >>> printable("ring" + chr(7))
    'ring�'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def main(argv: list[str]) -> int:
    """Parse, load the newest checkpoint, draw, write, print the path."""
    parser = Parser("python -m bitnet_ref.train.report", __doc__)
    parser.add_argument("run", type=text, metavar="RUN", help="the folder of a run with a checkpoint")
    args = parser.parse_args(argv)
    from bitnet_ref.formats import checkpoint as files
    from bitnet_ref.model import Params
    from bitnet_ref.model.params import param_specs
    from bitnet_ref.train.plots import draw
    checkpoint = files.latest(args.run)
    state = files.read_state(checkpoint)
    cfg = files.model_config(state)
    names = [files.PARAM + spec.name for spec in param_specs(cfg)]
    tensors = files.read_tensors(checkpoint, state, names)      # checked before so much memory is asked for
    params = Params(param_specs(cfg))
    files.fill(params, tensors, files.PARAM)
    run = checkpoint.parent
    print(write(run, draw(run, params, cfg.linear == "ternary")))
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
