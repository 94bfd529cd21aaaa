"""Router: sends a prompt to where its prefix lies, on :8000. Open `route.py` first."""
