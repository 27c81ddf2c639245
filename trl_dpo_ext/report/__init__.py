"""The report: one page that shows the metrics of a run."""
