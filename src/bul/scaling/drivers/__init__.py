"""Drivers: what starts and stops replicas. One contract (`contract.py`), one contract test."""
