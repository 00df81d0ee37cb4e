"""What the site does beyond Sphinx and its theme; docs/conf.py names the parts."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
ORDER = ("checks config quant pack layers kernels model data chain formats generate evaluate train bench "
         "cli info convert chat conform").split()         # tests/test_imports.py, then the commands
