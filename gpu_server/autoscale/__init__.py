"""Gunicorn workers that follow the load: what is measured, what is decided, and the signals that do it. Torch-free."""
