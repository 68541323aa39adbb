"""One recipe of several: cross-validation by patient, the table of its results, the final training."""
