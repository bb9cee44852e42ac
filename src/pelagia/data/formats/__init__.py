"""Annotation formats: one file each with `sniff`, `read` and `write`."""
