"""The Triton programs and what launches them.

Imported where a kernel is launched, because Triton has no wheel for every system.
"""
