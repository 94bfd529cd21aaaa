"""Metrics: windows, quantiles, the seven signals. Open `snapshot.py` first."""
