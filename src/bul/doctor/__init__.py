"""The guide's checklist as checks of a live region. Open `checks.py` first."""
