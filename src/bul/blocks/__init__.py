"""Blocks: keys, identity, the byte format. Pure; open `chain.py` first."""
