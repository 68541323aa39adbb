"""Features on disk: entries by key, whole or absent, of one fingerprint."""
