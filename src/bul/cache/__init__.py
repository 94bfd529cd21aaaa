"""Cache: the KV cache engine and its tiers. Open `engine.py` first."""
