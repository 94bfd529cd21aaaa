"""Eviction: which block goes next. Open `make.py` first: `make_policy("adaptive", capacity)`."""
