"""Hold the suite to its promise: 100 % branch coverage of quant, layers and model, 95 % of all.

`python .ci/covered.py coverage.json` (made by pytest --cov-report=json); exit code 1 if it is not kept.
"""

import json
import sys

with open(sys.argv[1], encoding="utf-8") as report:
    files = json.load(report)["files"]


def share(of):
    """Covered statements and branches of the files for which `of` holds, in per cent."""
    totals = [f["summary"] for name, f in files.items() if of(name.replace("\\", "/"))]
    done = sum(t["covered_lines"] + t["covered_branches"] for t in totals)
    return 100 * done / sum(t["num_statements"] + t["num_branches"] for t in totals)


core = share(lambda n: "/layers/" in n or "/model/" in n or n.endswith("bitnet_ref/quant.py"))
everything = share(lambda n: True)
print(f"branch coverage: quant, layers, model {core:.1f} %, all {everything:.1f} %")
sys.exit(not (core == 100 and everything >= 95))
