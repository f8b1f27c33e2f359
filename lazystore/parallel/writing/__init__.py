"""Datasets written by many workers, put together from parts, and completed after a crash."""
