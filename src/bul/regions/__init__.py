"""One cache for the world: what a region tells the others, asks them, and never brings back.

Open `node.py` first: one region's judgement and its conversations. `versions.py`, `catalogue.py`,
`order.py` and `outbox.py` are its pure heart; `peer.py`, `store.py`, `journal.py` and
`replication.py` are the rim. `multi_region.py` is the scaling guide's class.
"""
