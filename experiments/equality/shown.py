"""stub until merged"""

from experiments.harness.report import Report

REPORT = Report(lambda units, details: [], lambda units, folder: [])
