"""The engine process: holds the models on one device and runs batches. The only place where torch is imported."""

import os

# Torch's CPU threads wait for each other after every operation: asleep, since the cores are the daemon's and the web
# workers' too, and a thread that spins keeps another from the core it needs. OpenMP reads this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
