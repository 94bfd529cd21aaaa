"""Shipped fakes, fault proxies and contract tests. Open `tier_contract.py` first."""
