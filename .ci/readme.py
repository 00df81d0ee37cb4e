"""Print the commands of one ```sh block of the README, so that CI runs exactly what a user is told to run.

`python .ci/readme.py 1` prints the first block, `2` the second.
"""

import re
import sys
from pathlib import Path

text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
print(re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[int(sys.argv[1]) - 1])
