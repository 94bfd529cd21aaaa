"""Signals as at a terminal: a shell's background job ignores SIGINT, and so would all it starts."""

from __future__ import annotations

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
