"""Which query learns which object: one query each, at the least total cost.

Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020 (arXiv:2005.12872), eq. 1; solved exactly by the
Hungarian algorithm (Kuhn 1955), here `scipy.optimize.linear_sum_assignment`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pelagia.core.lazy import resolve

__all__ = ["Matching", "hungarian"]


@dataclass(frozen=True, slots=True)
class Matching:
    """P pairs of a query and an object; in an image no query and no object occurs twice. Ordered by object.

    Args:
        image: [P] int64.
        query: [P] int64, number of the query within the image.
        object: [P] int64, row of the targets.
    """

    image: Tensor
    query: Tensor
    object: Tensor


@torch.no_grad()
def hungarian(cost: Tensor, batch: Tensor) -> Matching:
    """The matching of queries to objects that has the least sum of costs, for each image by itself.

    An image of M objects and Q queries gets min(M, Q) pairs: with more objects than queries the cheapest Q of them are matched
    and the rest is not. A cost that is NaN or infinite counts as the largest finite number, so that a diverging network fails in
    its loss, where it is reported, and not here.

    All costs go to the host in one copy and the pairs come back in one. The time of an image grows as min(M, Q)² max(M, Q): well
    under a millisecond for 100 queries and 20 objects, some 20 ms for 1,000 queries and 500 objects.

    Args:
        cost: [M, Q], of every object with every query of its own image.
        batch: [M] int64, the image of each object; ascending, as `Targets.batch` is.
    """
    cost = cost.to(torch.promote_types(cost.dtype, torch.float32))
    largest = torch.finfo(cost.dtype).max
    finite = torch.nan_to_num(cost, nan=largest, posinf=largest, neginf=largest)
    host = torch.cat((finite, batch[:, None].to(cost.dtype)), dim=1).cpu().numpy()  # [M, Q + 1], the last column the image
    images, starts = np.unique(host[:, -1].astype(np.int64), return_index=True)
    solve = resolve("scipy.optimize", purpose="match queries to objects").linear_sum_assignment
    pairs = [np.zeros((3, 0), dtype=np.int64)]
    for image, first, part in zip(images, starts, np.split(host[:, :-1], starts[1:]), strict=False):
        rows, queries = solve(part)
        pairs.append(np.stack([np.full(len(rows), image), queries, first + rows]))
    found = torch.from_numpy(np.concatenate(pairs, axis=1)).to(cost.device)
    return Matching(*found.unbind(0))
