"""Datasets of other formats: reading them in and writing them out."""
