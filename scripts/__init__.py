"""Angiography sequence classification: DICOM run -> frames -> features -> batch -> logits -> report."""
