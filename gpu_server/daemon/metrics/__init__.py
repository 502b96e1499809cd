"""What the daemon counts, what each series means, and the Prometheus text of it."""

from gpu_server.daemon.metrics.counts import Metrics, ModelMetrics

__all__ = ["Metrics", "ModelMetrics"]
