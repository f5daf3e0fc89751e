"""Self-contained HTML pages: which method is best, by how much, at what cost."""

from ia2.report.analysis_page import write_analysis
from ia2.report.figures import display_name
from ia2.report.grid_page import crosses_at, write_grid_analysis
from ia2.report.numbers import SHORT, p_text
from ia2.report.page import write_report
from ia2.report.sweep_page import write_sweep_report

__all__ = [
    "SHORT",
    "crosses_at",
    "display_name",
    "p_text",
    "write_analysis",
    "write_grid_analysis",
    "write_report",
    "write_sweep_report",
]
