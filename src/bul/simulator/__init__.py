"""Simulator: a region in virtual time, from one seed. Open `cluster.py` first."""
