"""Folders and labels -> datalist -> checked items; the map is in scripts/__init__.py."""
