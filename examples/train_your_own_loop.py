"""Train a small transformer of your own, with nonlin's feed-forward block and a health report at the end.

    python examples/train_your_own_loop.py --activation swiglu --steps 200
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nonlin
from nonlin.data import load_corpus
from nonlin.nn import FeedForward


class Layer(nn.Module):
    """Causal attention, then a feed-forward block, each with its norm before it."""

    def __init__(self, dim: int, heads: int, activation: str):
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_feed_forward = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.feed_forward = FeedForward(dim, activation=activation)  # as many parameters whatever the activation

    def forward(self, x_BTD: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for part in self.qkv(self.norm_attention(x_BTD)).chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x_BTD = x_BTD + self.out(attended)
        return x_BTD + self.feed_forward(self.norm_feed_forward(x_BTD))


class Model(nn.Module):
    """Bytes in, logits of the next byte out."""

    def __init__(self, dim: int, layers: int, context: int, activation: str):
        super().__init__()
        self.embed, self.place = nn.Embedding(256, dim), nn.Embedding(context, dim)
        self.layers = nn.Sequential(*(Layer(dim, 4, activation) for _ in range(layers)))
        self.norm, self.head = nn.RMSNorm(dim), nn.Linear(dim, 256, bias=False)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        places = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        return self.head(self.norm(self.layers(self.embed(tokens_BT) + self.place(places))))


def parameter_groups(model: nn.Module) -> list[dict]:
    """Weight decay for all parameters but those of activations."""
    plain = [p for p in model.parameters() if getattr(p, "_no_weight_decay", False)]
    decayed = [p for p in model.parameters() if not getattr(p, "_no_weight_decay", False)]
    return [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]


def main() -> None:
    """Train, print the loss, and say what is wrong inside the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--activation", default="swiglu", help="a name of the catalog, or mine=x*sigmoid(2*x)")
    parser.add_argument("--data", help="a file or a folder; without it, the text of Python's standard library")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--context", type=int, default=64)
    asked = parser.parse_args()

    name = asked.activation
    if "=" in name:
        name, formula = name.split("=", 1)
        nonlin.define(name, formula)
    text = b"".join(document for _, document in load_corpus(asked.data).documents)
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    torch.manual_seed(0)
    model = Model(64, 2, asked.context, name)
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=3e-3)
    with nonlin.health.watch(model, every=max(1, asked.steps // 4)) as health:
        for step in range(asked.steps):
            starts = torch.randint(0, len(tokens) - asked.context - 1, (16,))
            batch = torch.stack([tokens[i:i + asked.context + 1] for i in starts])
            loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % max(1, asked.steps // 5) == 0 or step == asked.steps - 1:
                print(f"step {step:4d}  {loss.item() / torch.log(torch.tensor(2.0)):.3f} bits per byte")
    findings = health.findings()
    print(f"health: {len(findings)} findings")
    for finding in findings:
        print(f"  {finding['grade']}: {finding['text']} {finding['action']}")


if __name__ == "__main__":
    main()
