"""Models: the API for your own (`base`) and the built-in text models (`text`)."""

from gpu_server.models.base import Model

__all__ = ["Model"]
