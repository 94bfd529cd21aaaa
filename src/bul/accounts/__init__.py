"""API keys and what their holders used, in a database. Open `keys.py` first, then `ledger.py`."""
