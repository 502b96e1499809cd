"""The texts of these tests and what the models' own libraries make of them, compared within float32 noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUERY = "What do people eat?"
TEXTS = [
    "A man is eating food.",
    "The night sky is full of stars.",
    "x",
    "naïve café 你好 🙂",
    "She cooks pasta, rice and a soup of vegetables every evening of the week.",
    "Hello",
    "World",
]
Floats = NDArray[np.float32]
TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}


class Expectations:
    """What references.py wrote; rows are in the order of TEXTS."""

    def __init__(self, written: dict[str, Any]) -> None:
        self._written = written

    def rows(self, name: str, texts: Sequence[str] = TEXTS) -> Floats:
        """One row for each text."""
        return np.array([self._written[name][TEXTS.index(text)] for text in texts], np.float32)

    def of(self, name: str, text: str) -> Any:
        """What was written for one text."""
        return self._written[name][TEXTS.index(text)]

    def embeddings(self, vectors: Any, texts: Sequence[str] = TEXTS, dimensions: int = 384) -> None:
        """Assert that vectors are the unit embeddings of the texts, cut to so many dimensions."""
        cut = self.rows("embeddings", texts)[:, :dimensions]
        self.close(vectors, cut / np.linalg.norm(cut, axis=1, keepdims=True))

    def relevance(self, texts: Sequence[str] = TEXTS) -> Floats:
        """The reranker's score of each text for QUERY."""
        return 1 / (1 + np.exp(-self.rows("rerank", texts)[:, 0]))

    def ranked(
        self, rows: Sequence[Mapping[str, Any]], texts: Sequence[str] = TEXTS, score: str = "score"
    ) -> None:
        """Assert that rows of index and score are the ranking of the texts, or the head of it."""
        scores = self.relevance(texts)
        best = np.argsort(-scores)[: len(rows)]
        assert [row["index"] for row in rows] == best.tolist()
        self.close([row[score] for row in rows], scores[best])

    def classes(self, rows: Sequence[Mapping[str, Any]], text: str, logits: str = "classify") -> None:
        """Assert that rows of label and score are the classifier's, the most likely first, or the head of them."""
        values = np.array(self.of(logits, text))
        shares = np.exp(values) / np.exp(values).sum()
        labels = np.array(["negative", "neutral", "positive"])
        order = np.argsort(-shares)[: len(rows)]
        assert [row["label"] for row in rows] == labels[order].tolist()
        self.close([row["score"] for row in rows], shares[order])

    def sparse(self, rows: Sequence[Mapping[str, Any]], text: str) -> None:
        """Assert that rows of index and value are what is not zero."""
        wanted = {int(index): value for index, value in self.of("sparse", text).items()}
        got = {row["index"]: row["value"] for row in rows}
        # A logit of almost nothing may be zero in one of the two.
        for index in wanted.keys() ^ got.keys():
            assert abs(wanted.get(index, got.get(index, 1.0))) < TOLERANCE["atol"]
        common = sorted(wanted.keys() & got.keys())
        assert common
        self.close([got[i] for i in common], [wanted[i] for i in common])

    @staticmethod
    def close(got: Any, wanted: Any) -> None:
        """Assert that numbers are equal but for float32 noise."""
        np.testing.assert_allclose(np.asarray(got, np.float32), wanted, **TOLERANCE)
