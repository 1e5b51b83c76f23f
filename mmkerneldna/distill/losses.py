"""What a student's map is held against its teacher's by: Pearson correlation, channel-wise divergence, relative squared error.

- PKD: "PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient", Cao et al. 2022,
  https://arxiv.org/abs/2207.02039.
- CWD: "Channel-wise Knowledge Distillation for Dense Prediction", Shu et al. 2021, https://arxiv.org/abs/2011.13256.

All take two maps (N, C, H, W) of any floating type, compute in fp32 and return a scalar. N: images, C: channels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-8


def pkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 minus Pearson's correlation of the two maps, averaged over channels.

    Each channel has zero mean and unit variance over images and positions first. Half the squared error of such values is
    1 minus their correlation: scale and offset of a channel don't count.
    """
    return F.mse_loss(_standardised(student.float()), _standardised(teacher.float())) / 2


def cwd_loss(student: Tensor, teacher: Tensor, tau: float = 4.0) -> Tensor:
    """KL divergence of the teacher's and the student's softmax over positions, averaged over images and channels.

    Args:
        student, teacher (Tensor): the maps.
        tau (float): temperature of the softmax. The loss has the factor tau^2, which keeps the size of its gradients.
    """
    ours, theirs = (F.log_softmax(x.float().flatten(2) / tau, dim=-1) for x in (student, teacher))
    images, channels = student.shape[:2]
    return F.kl_div(ours, theirs, reduction='sum', log_target=True) * tau**2 / (images * channels)


def mse_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error over the teacher's mean square: 1 for a student that is 0 everywhere, of whatever net."""
    teacher = teacher.float()
    return F.mse_loss(student.float(), teacher) / teacher.square().mean().clamp_min(EPS)


def _standardised(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0, keepdim=True)
    return (x - mean) / (variance + EPS).sqrt()  # inside the root: the gradient of a dead channel is finite
