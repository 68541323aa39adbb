"""Any container -> frames -> encoder input; the map is in scripts/__init__.py."""
