import torch

from gpu_server import Model


class Classifier(Model):
    inputs = {"pixels": ("f32", (3, 32, 32))}

    def load(self, device):
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
        self.net.to(device).eval()

    def forward(self, batch):
        best = self.net(batch["pixels"]).softmax(dim=1).max(dim=1)
        return {"label": best.indices, "score": best.values}
