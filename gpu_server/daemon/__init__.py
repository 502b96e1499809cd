"""The torch-free daemon: admits requests, batches them, hands batches to the engine process, replies."""
