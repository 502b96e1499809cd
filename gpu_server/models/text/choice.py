"""Which class of model a checkpoint needs."""

from __future__ import annotations

from typing import Any

from gpu_server.models.text import checkpoint, source
from gpu_server.models.text.checkpoint import Task
from gpu_server.models.text.embedding import EmbeddingModel
from gpu_server.models.text.model import TextModel
from gpu_server.models.text.multi_vector import MultiVectorModel
from gpu_server.models.text.sequence import SequenceModel
from gpu_server.models.text.sparse import SparseModel
from gpu_server.models.text.token_classifier import TokenClassifier

_CLASSES: dict[Task, type[TextModel]] = {
    "embedding": EmbeddingModel,
    "multi_vector": MultiVectorModel,
    "sparse": SparseModel,
    "scores": SequenceModel,
    "token_classifier": TokenClassifier,
}


def choose(where: str, *, revision: str = "", pooling: str = "", **options: Any) -> TextModel:
    """A model for the checkpoint `where`, not loaded yet; arguments as `TextModel` has them.

    Raises ModelFolderMissing, ConfigError, EngineStartFailed.
    """
    task = checkpoint.task_of(source.find(where, revision), pooling)
    return _CLASSES[task](where, revision=revision, pooling=pooling, **options)
