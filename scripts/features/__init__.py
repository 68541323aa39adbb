"""Frames -> features on disk, and the batches that are read from there."""
