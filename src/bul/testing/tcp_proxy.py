"""The TCP proxy that spoils what passes; it lives where `bul up --regions` may use it as well.

Refuses to be a second one: see `bul/regions/wan.py`.
"""

from bul.regions.wan import FaultProxy, Faults

__all__ = ["FaultProxy", "Faults"]
