"""Frames -> features on disk: the store, the extraction that fills it, the batches read from it."""
