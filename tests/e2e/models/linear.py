"""Any torch module behind the server: what a user writes."""

import torch

from gpu_server.models.base import Model


class Linear(Model):
    inputs = {"x": ("f32", (8,)), "nonce": ("i64", ())}  # noqa: RUF012 - as users write it

    def load(self, device):
        torch.manual_seed(0)
        self.net = torch.nn.Linear(8, 4).to(device)

    def forward(self, batch):
        return {"y": self.net(batch["x"]), "nonce": batch["nonce"]}
