"""BUL: reuse KV correctly and fast, route to it, scale by it.

Open `docs/ARCHITECTURE.md` first; it follows one request through the folders.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
