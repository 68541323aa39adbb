"""Logits -> numbers and pictures: metrics with intervals, plots, predictions, the report page."""
