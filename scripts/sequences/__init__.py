"""Files -> frames: read DICOM sequences, choose frames, normalise, make synthetic exams."""
