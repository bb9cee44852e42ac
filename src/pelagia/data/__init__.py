"""Labelled data: reading, checking, splitting, converting, drawing and augmenting it."""
