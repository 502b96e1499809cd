"""Load for an HTTP service, from several processes: what `gpu-server bench http` runs."""
