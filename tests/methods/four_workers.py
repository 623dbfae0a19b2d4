"""MoCo's shuffled keys on four workers beside those of a plain all-gather; run as `python four_workers.py FOLDER RANK [bytes]`."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ray_sassl.methods import moco
from ray_sassl.nn.gather import all_gather
from ray_sassl.nn.normalize import Normalization

WORLD_SIZE, BATCH_SIZE = 4, 6


def main(folder: Path, rank: int, *, sends_bytes: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=WORLD_SIZE)
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    method = moco.Config(projector_hidden_size=16, embedding_size=8, queue_size=32, bn="shuffle").build(layers, 8).train()
    normalization = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), torch.device("cpu"))
    method.normalization = normalization if sends_bytes else None
    images = torch.randint(0, 256, (BATCH_SIZE, 16, 16, 3), generator=torch.Generator().manual_seed(rank), dtype=torch.uint8)
    view = normalization(images)

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(7)

    order = torch.randperm(WORLD_SIZE * BATCH_SIZE, generator=generator())
    everyone = all_gather(view.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    mine = order[rank * BATCH_SIZE : (rank + 1) * BATCH_SIZE]
    expected = all_gather(method._encode_keys(everyone[mine]).detach())[order.argsort()]
    sent_bytes = 0
    exchange = dist.all_to_all_single

    def counted(received: Tensor, sent: Tensor, counts: list[int], sent_counts: list[int]) -> Any:
        nonlocal sent_bytes
        others = sum(sent_counts) - sent_counts[rank]
        sent_bytes += others * sent[0].numel() * sent.element_size()
        return exchange(received, sent, counts, sent_counts)

    dist.all_to_all_single = counted
    keys = method._keys(view, generator())
    owner = torch.arange(WORLD_SIZE).repeat_interleave(BATCH_SIZE)
    num_moved = int((order // BATCH_SIZE != owner).sum())
    torch.save({"keys": keys, "expected": expected, "sent_bytes": sent_bytes, "num_moved": num_moved}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sends_bytes="bytes" in sys.argv)
