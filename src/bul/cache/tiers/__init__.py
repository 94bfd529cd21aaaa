"""Tiers: where blocks lie. They import the contract, and only the wiring imports them."""
