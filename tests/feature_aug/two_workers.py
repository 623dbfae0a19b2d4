"""What the tests compare between one worker and two; run as `python two_workers.py FILE RANK OUT`, once for each rank."""

import sys

import torch
import torch.distributed as dist
from torch import Tensor

from ray_sassl.feature_aug import FeatureAugConfig
from ray_sassl.nn.gather import all_gather, rank, world_size

GLOBAL_BATCH, WIDTH, NUM_SAMPLES = 8, 16, 3


def mine(x: Tensor) -> Tensor:
    share = len(x) // world_size()
    return x[rank() * share : (rank() + 1) * share]


def steps_of(config: FeatureAugConfig, num_steps: int = 3) -> dict[str, Tensor]:
    """Features and gradients of the global batch at each step, and the state in the end."""
    torch.manual_seed(0)
    augmentation = config.build(WIDTH, NUM_SAMPLES).double()
    features, gradients = [], []
    for step in range(num_steps):
        z = torch.randn(GLOBAL_BATCH, WIDTH, generator=torch.Generator().manual_seed(step), dtype=torch.float64) + 0.5
        z, ids = mine(z).clone().requires_grad_(), mine(torch.arange(GLOBAL_BATCH))
        augmented = augmentation(z, torch.Generator().manual_seed(step), ids)
        (augmented.square().sum() + 0 * z.sum()).backward()
        augmentation.remember(z, ids)
        assert z.grad is not None
        features.append(all_gather(augmented.transpose(0, 1)))
        gradients.append(all_gather(z.grad))
    return {"features": torch.stack(features), "gradients": torch.stack(gradients), **augmentation.state_dict()}


def main(file: str, worker: int, out: str) -> None:
    from conftest import variants  # beside this file

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=worker, world_size=2)
    torch.save({name: steps_of(config) for name, config in variants().items()}, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
