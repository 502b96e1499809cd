"""Modules that `gpu-server check` runs as `python -m`, one question each: JSON on stdin, one line of JSON on stdout."""
