"""Scaling: decide how many replicas, and make it so. Open `decide.py` first."""
