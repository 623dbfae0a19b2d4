"""What the tests compare between one worker and two; run as `python two_workers.py FILE RANK OUT`, once for each rank."""

import contextlib
import sys

import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ray_sassl.methods import MethodConfig, moco
from ray_sassl.nn.gather import all_gather, all_gather_with_gradient, all_reduce_with_gradient, rank, world_size
from ray_sassl.nn.sync_batchnorm import convert
from ray_sassl.plugins import load_plugin, plugin_names

GLOBAL_BATCH = 12
OPTIONS = {
    "queue_size": 20,
    "queue_start": 0,
    "momentum": 0.5,
    "bn": "sync",
    "symmetric": True,
    "num_prototypes": 10,
    "prototypes_frozen": 0,
    "num_outputs": 10,
    "last_layer_frozen": 0,
}
NEAREST = {"name": "nearest", "support_size": 20, "top_k": 3}
FEATURE_AUGMENTATIONS = {
    "basic, nearest": {"architecture": "basic", "augmentation": NEAREST},
    "parallel_predictor, nearest": {"architecture": "parallel_predictor", "augmentation": NEAREST, "num_samples": 2, "reduction": "free"},
    "pre_predictor, noise": {"architecture": "pre_predictor", "augmentation": "noise"},
}


def configs() -> dict[str, MethodConfig]:
    """Every method, small and with every part of it at work, and those with feature augmentation in some of its places."""
    found = {}
    for name in plugin_names("ray_sassl.methods"):
        config_class = load_plugin("ray_sassl.methods", name).Config
        options = config_class.tiny().model_dump(mode="json", exclude={"fa"})
        options |= {key: value for key, value in OPTIONS.items() if key in config_class.model_fields}
        found[name] = config_class(**options)
        for title, fa in FEATURE_AUGMENTATIONS.items():
            if "fa" in config_class.model_fields:
                width = {} if fa["architecture"] == "basic" else {"predictor_hidden_size": 16}
                with contextlib.suppress(ValidationError):  # what makes no sense for a method
                    found[f"{name}, {title}"] = config_class(**options | width, fa=fa)
    return found


def mine(x: Tensor) -> Tensor:
    share = len(x) // world_size()
    return x[rank() * share : (rank() + 1) * share]


def views(num_small: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(GLOBAL_BATCH, 3, size, size) for size in [8, 8] + [4] * num_small]
    return [torch.randn(s, generator=generator, dtype=torch.float64).contiguous(memory_format=torch.channels_last) for s in shapes]


def build(config) -> nn.Module:
    """The method around a small backbone: every batch normalization talks to the other worker, and a deep network has many."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, bias=False),
        nn.BatchNorm2d(16),
    ]
    return config.build(nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 16).double()


def steps_of(config, num_steps: int = 3) -> dict[str, Tensor]:
    """Losses, gradients of the last step, and the state after a few steps of SGD."""
    method = build(config)
    network = DistributedDataParallel(method, broadcast_buffers=False) if world_size() > 1 else method
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for step in range(num_steps):
        optimizer.zero_grad()
        seen = [mine(view) for view in views(num_small=3 if config.takes_small_views else 0)]
        output = network(seen, torch.Generator().manual_seed(step), mine(torch.arange(GLOBAL_BATCH)))
        output.loss.backward()
        optimizer.step()
        method.after_step((step + 1) / num_steps)
        losses.append(all_gather(output.loss.detach()[None]).mean())
    gradients = {f"gradient.{name}": p.grad for name, p in method.named_parameters() if p.grad is not None}
    return {"losses": torch.stack(losses), **gradients, **method.state_dict()}


def batch_norm() -> dict[str, Tensor]:
    """Outputs, gradients and running statistics of a synchronized layer, with parts of the batch of unequal size."""
    torch.manual_seed(1)
    x, upstream = torch.randn(2, 10, 3, 4, 5, dtype=torch.float64)
    part = slice(None) if world_size() == 1 else (slice(0, 7), slice(7, 10))[rank()]
    bn = nn.BatchNorm2d(3).double()
    with torch.no_grad():
        bn.weight.copy_(torch.tensor([0.5, 2.0, -1.0]))
    bn, x = convert(bn), x[part].requires_grad_()
    y = bn(x)
    (y * upstream[part]).sum().backward()
    return {"y": y.detach(), "x_grad": x.grad, "weight_grad": bn.weight.grad, "bias_grad": bn.bias.grad, **bn.state_dict()}


def gather() -> dict[str, Tensor]:
    """The gathered rows, and the gradient of each worker's own weighted sum over all of them."""
    x = mine(torch.arange(8.0).view(4, 2)).clone().requires_grad_()
    everyone = all_gather_with_gradient(x)
    ((rank() + 1) * everyone.square().sum()).backward()
    return {"everyone": everyone.detach(), "plain": all_gather(x), "gradient": x.grad}


def summed() -> dict[str, Tensor]:
    """The sum over workers, what was summed, and the gradient of each worker's own weighted sum of it."""
    x = (torch.tensor([1.0, 2.0]) + 10 * rank()).requires_grad_()
    total = all_reduce_with_gradient(x)
    ((rank() + 1) * total.square().sum()).backward()
    return {"x": x.detach(), "total": total.detach(), "gradient": x.grad}


def shuffled_keys() -> dict[str, Tensor]:
    """Keys by shuffled batch normalization in evaluation mode, where the order of the batch does not matter, and the queue after."""
    method = build(moco.Config(projector_hidden_size=16, embedding_size=8, queue_size=20, bn="shuffle")).eval()
    view = mine(views()[0])
    keys, plain = method._shuffled_keys(view, torch.Generator().manual_seed(0)), all_gather(method._encode_keys(view))
    output = method.train()([mine(view) for view in views()], torch.Generator().manual_seed(0))
    return {"keys": keys, "plain": plain, "queue": method.queue.embeddings, "loss": output.loss.detach()}


def main(file: str, worker: int, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=worker, world_size=2)
    results = {"batch_norm": batch_norm(), "gather": gather(), "sum": summed(), "shuffled_keys": shuffled_keys()}
    results |= {name: steps_of(config) for name, config in configs().items()}
    torch.save(results, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
