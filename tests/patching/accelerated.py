"""Running a model with and without nonlin, and judging both against float64."""

import copy

import torch

from nonlin.patching.finding import find_blocks

MODES = (torch.float32, torch.bfloat16)


def awake(model, seed=0):
    """Give the feed-forward blocks weights and biases that reach every part of their activation, and return it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for block in find_blocks(model):
            for role, p in block.projections.items():
                weight = p.weight
                scale = 4.0 if role != "down" else 0.3
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale * weight.shape[-1] ** -0.5)
                if p.bias is not None:
                    p.bias.copy_(torch.randn(p.bias.shape, generator=generator))
    return model


def arguments(family):
    """Token ids, and the decoder's where there is one."""
    tokens = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(5))
    return {"input_ids": tokens} | ({"decoder_input_ids": tokens.flip(1)} if family.model.startswith("T5") else {})


def output(model, family):
    """Logits, or the last hidden state."""
    options = {} if family.model in ("BertModel", "ModernBertModel") else {"use_cache": False}
    out = model(**arguments(family), **options)
    return out.logits if hasattr(out, "logits") else out.last_hidden_state


def measured(model, family, run=output):
    """(output, gradient by parameter), in float64."""
    model.zero_grad()
    out = run(model, family)
    towards = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    (out * towards.to(out.dtype)).sum().backward()
    grads = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    return out.detach().double(), grads


def exact(model, family):
    """What float64 gives, with the very weights of the model."""
    twin = copy.deepcopy(model).double()
    if any(block.experts for block in find_blocks(model)):
        twin.set_experts_implementation("eager")  # torch's grouped product has no float64
    return measured(twin, family)


def errors(got, truth):
    """The relative errors (norms) of the output, of each gradient, and of all gradients together."""
    (out, grads), (true_out, true_grads) = got, truth
    # A compiled model gives zeros where an eager one gives no gradient (BERT's unused pooler).
    assert set(true_grads) <= set(grads) and not any(grads[n].any() for n in set(grads) - set(true_grads))
    each = {name: float((grads[name] - true).norm() / true.norm().clamp(min=1e-30))
            for name, true in true_grads.items() if float(true.norm()) > 0}
    squares = sum(float((grads[n] - t).norm()) ** 2 for n, t in true_grads.items())
    whole = sum(float(t.norm()) ** 2 for t in true_grads.values())
    return float((out - true_out).norm() / true_out.norm()), each, (squares / whole) ** 0.5
