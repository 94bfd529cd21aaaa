"""Service: the OpenAI-compatible replica on :8002. Open `app.py` first."""
