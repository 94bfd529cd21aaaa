"""Inference: tokens in, tokens out, KV out and in per block. Open `runner.py` first."""
