"""Observation files in and out."""
