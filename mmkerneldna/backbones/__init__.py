"""Upstream backbones with a sharing plan."""

from .mobilenet_v2 import KDNAMobileNetV2
from .resnet import KDNAResNet

__all__ = ['KDNAMobileNetV2', 'KDNAResNet']
