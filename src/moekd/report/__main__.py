"""`python -m moekd.report RESULTS.json ...` prints docs/results.md, made from these files and nothing else."""

import sys
from pathlib import Path

from moekd.report.tables import render_results_doc

sys.stdout.write(render_results_doc([Path(name) for name in sys.argv[1:]]))
