"""Loads an OpenAI-compatible endpoint and says what its users felt. Open `load.py` first."""
