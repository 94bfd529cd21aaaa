"""The command line: one file per command; wiring lives here only. Open `main.py` first."""
