"""Losses of regressed keypoints; the similarity of two poses stands in `pelagia.core.keypoints`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pelagia.core.keypoints import similarity

__all__ = ["keypoint_similarity_loss", "visibility_loss"]


def keypoint_similarity_loss(points: Tensor, truth: Tensor, areas: Tensor, sigmas: Tensor) -> Tensor:
    """OKS loss (Maji et al., "YOLO-Pose", CVPRW 2022, arXiv:2204.06806, section 3.4), [P].

    The mean over the labelled points (v > 0) of 1 - exp(-d² / (2 s² (2 sigma)²)); 0 where no point is labelled. `points` [P, K,
    2] and `truth` [P, K, 3] in pixels, `areas` [P] are s², `sigmas` [K].
    """
    labelled = truth[..., 2] > 0
    # A point that is not labelled may lie anywhere; its distance must not reach the sum as infinity times zero.
    away = torch.where(labelled[..., None], points - truth[..., :2], 0.0)
    loss = 1 - similarity(away.square().sum(dim=-1), areas, sigmas)
    return loss.sum(dim=1) / labelled.sum(dim=1).clamp(min=1)


def visibility_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """[P], the mean over the points of the binary cross-entropy between logits [P, K] and whether a point is labelled, v > 0."""
    return F.binary_cross_entropy_with_logits(logits, (truth[..., 2] > 0).to(logits.dtype), reduction="none").mean(dim=1)
