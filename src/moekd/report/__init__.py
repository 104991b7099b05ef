"""All numbers of a run in one file, and the tables that are made from that file and nothing else."""

from moekd.report.stage import results
from moekd.report.tables import render_markdown, render_results_doc

__all__ = ["render_markdown", "render_results_doc", "results"]
