"""llama.cpp's Python binding, loaded so that threads which wait give up their processor.

Refuses to let them spin, which is OpenMP's default: two replicas with two threads each on two cores
then wait for each other's turn. Measured there: prefill 220 tokens/s a replica instead of 98,
decode 70 instead of 42. The variable is read once, when the library is loaded: hence this module,
which everyone imports the binding from.
"""

from __future__ import annotations

from bul.config.variables import set_default_variable

set_default_variable("OMP_WAIT_POLICY", "passive")

from cyllama.llama import llama_cpp  # noqa: E402 - only after the line above

__all__ = ["llama_cpp"]
