"""DICOM files -> header and stored values of one sequence; the map is in scripts/__init__.py."""
