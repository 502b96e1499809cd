"""The engine process: holds the models on one device and runs batches. The only place where torch is imported."""
