"""Eviction: which block goes next. Open `contract.py` first."""
