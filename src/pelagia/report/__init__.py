"""Plots, and the one-file HTML report."""

from __future__ import annotations

from pelagia.report.detection import detection_sections
from pelagia.report.html import Gallery, Heading, Numbers, Picture, Section, Table, Text, write_report
from pelagia.report.plots import detection_plots

__all__ = [
    "Gallery",
    "Heading",
    "Numbers",
    "Picture",
    "Section",
    "Table",
    "Text",
    "detection_plots",
    "detection_sections",
    "write_report",
]
