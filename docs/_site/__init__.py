"""What the site does beyond Sphinx and its theme; docs/conf.py names the parts."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# tests/test_imports.py has this order; the commands come last.
ORDER = ["checks", "config", "quant", "pack", "layers", "kernels", "model", "data", "chain", "formats",
         "generate", "evaluate", "train", "bench", "serve", "walk", "cli", "info", "convert", "chat",
         "conform"]
