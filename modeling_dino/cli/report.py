# SPDX-License-Identifier: Apache-2.0
"""The command `report`."""

from ..report.options import ReportOptions


def report(options: ReportOptions):
    """Writes one HTML page: a map of the images, neighbours, near-duplicates, outliers, and what k-NN predicts."""
    from ..report.page import write_report

    return write_report(options)
