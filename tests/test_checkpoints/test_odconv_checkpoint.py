"""A naive forward that reads the released ODConv key layout from the state dict, against our converted backbones."""

import pytest
import torch
import torch.nn.functional as F
from mmdet.models import MobileNetV2, ResNet

from mmkerneldna.checkpoints import convert_odconv
from mmkerneldna.layers import swap_convs

MOBILE_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class Released:
    """A state dict that comes into being as the naive forward asks for its entries."""

    def __init__(self, kernel_num):
        self.kernel_num, self.state = kernel_num, {}

    def get(self, key, *shape, low=None, high=None):
        if key not in self.state:
            value = torch.empty(shape)
            fan = value[0].numel() if value.dim() == 4 else value[0, 0].numel() if value.dim() == 5 else 4
            self.state[key] = value.normal_(0, (2 / fan) ** 0.5) if low is None else value.uniform_(low, high)
        return self.state[key]

    def bn(self, x, name):
        c = x.shape[1]
        self.state.setdefault(f'{name}.num_batches_tracked', torch.tensor(7))
        mean, var = self.get(f'{name}.running_mean', c), self.get(f'{name}.running_var', c, low=0.5, high=2.0)
        weight, bias = self.get(f'{name}.weight', c, low=0.5, high=1.5), self.get(f'{name}.bias', c)
        column = (1, c, 1, 1)
        return (x - mean.view(column)) / (var.view(column) + 1e-5).sqrt() * weight.view(column) + bias.view(column)

    def static(self, x, name, out, kernel, stride=1):
        return F.conv2d(x, self.get(f'{name}.weight', out, x.shape[1], kernel, kernel), None, stride, kernel // 2)

    def dynamic(self, x, name, out, kernel, stride=1, groups=1):
        """Four attentions on the kernels themselves, one sample at a time."""
        c, n = x.shape[1], self.kernel_num
        experts = self.get(f'{name}.weight', n, out, c // groups, kernel, kernel)
        hidden = self.static(x.mean((2, 3), keepdim=True), f'{name}.attention.fc', max(c // 16, 16), 1)
        hidden = self.bn(hidden, f'{name}.attention.bn').relu()

        def head(kind, size):
            bias = self.get(f'{name}.attention.{kind}_fc.bias', size)
            return self.static(hidden, f'{name}.attention.{kind}_fc', size, 1).flatten(1) + bias

        kernels = experts[None].expand(len(x), -1, -1, -1, -1, -1)
        channel = head('channel', c).sigmoid()
        if groups == 1:
            kernels = kernels * channel.view(-1, 1, 1, c, 1, 1)
        else:  # depthwise: each output channel sees its own input channel
            kernels = kernels * channel.view(-1, 1, c, 1, 1, 1)
        if not c == out == groups:
            kernels = kernels * head('filter', out).sigmoid().view(-1, 1, out, 1, 1, 1)
        if kernel > 1:
            kernels = kernels * head('spatial', kernel**2).sigmoid().view(-1, 1, 1, 1, kernel, kernel)
        if n > 1:
            kernels = kernels * head('kernel', n).softmax(1).view(-1, n, 1, 1, 1, 1)
        pairs = zip(x, kernels.sum(1))
        return torch.stack([F.conv2d(s[None], k, None, stride, kernel // 2, 1, groups)[0] for s, k in pairs])

    def basic(self, x, name, planes, stride):
        y = self.bn(self.dynamic(x, f'{name}.conv1', planes, 3, stride), f'{name}.bn1').relu()
        return self.bn(self.dynamic(y, f'{name}.conv2', planes, 3), f'{name}.bn2')

    def bottleneck(self, x, name, planes, stride):
        y = self.bn(self.dynamic(x, f'{name}.conv1', planes // 4, 1), f'{name}.bn1').relu()
        y = self.bn(self.dynamic(y, f'{name}.conv2', planes // 4, 3, stride), f'{name}.bn2').relu()
        return self.bn(self.dynamic(y, f'{name}.conv3', planes, 1), f'{name}.bn3')

    def resnet(self, x, block, blocks, expansion):
        x = F.max_pool2d(self.bn(self.static(x, 'conv1', 64, 7, 2), 'bn1').relu(), 3, 2, 1)
        features = []
        for i, count in enumerate(blocks):
            planes = 64 * 2**i * expansion
            for j in range(count):
                name, stride, identity = f'layer{i + 1}.{j}', 2 if i and not j else 1, x
                y = block(x, name, planes, stride)
                if y.shape != x.shape:
                    identity = self.static(x, f'{name}.downsample.0', planes, 1, stride)
                    identity = self.bn(identity, f'{name}.downsample.1')
                x = (y + identity).relu()
            features.append(x)
        self.get('fc.weight', 1000, x.shape[1])
        self.get('fc.bias', 1000)
        return features

    def mobilenet(self, x):
        x = self.bn(self.static(x, 'features.0.0', 32, 3, 2), 'features.0.1').clamp(0, 6)
        position = 0
        for expand, out, count, stride in MOBILE_STAGES:
            for j in range(count):
                position += 1
                y, layer, width = x, 0, x.shape[1] * expand
                name = f'features.{position}.conv'
                if expand > 1:
                    y = self.bn(self.dynamic(y, f'{name}.0.0', width, 1), f'{name}.0.1').clamp(0, 6)
                    layer = 1
                y = self.dynamic(y, f'{name}.{layer}.0', width, 3, stride if j == 0 else 1, width)
                y = self.bn(y, f'{name}.{layer}.1').clamp(0, 6)
                y = self.bn(self.dynamic(y, f'{name}.{layer + 1}', out, 1), f'{name}.{layer + 2}')
                x = x + y if y.shape == x.shape and j else y
        x = self.bn(self.dynamic(x, 'features.18.0', 1280, 1), 'features.18.1').clamp(0, 6)
        self.get('classifier.1.weight', 1000, 1280)
        return [x]


NETS = {
    'resnet18': (lambda net, x: net.resnet(x, net.basic, (2, 2, 2, 2), 1), lambda: ResNet(18)),
    'resnet50': (lambda net, x: net.resnet(x, net.bottleneck, (3, 4, 6, 3), 4), lambda: ResNet(50)),
    'mobilenet_v2': (lambda net, x: net.mobilenet(x), lambda: MobileNetV2(out_indices=(7,))),
}


@pytest.mark.parametrize('name, kernel_num', [('resnet18', 4), ('resnet50', 1), ('mobilenet_v2', 1), ('mobilenet_v2', 3)])
@torch.no_grad()
def test_features_agree_with_the_released_layout(name, kernel_num):
    reference, build = NETS[name]
    released, x = Released(kernel_num), torch.randn(2, 3, 64, 64)
    expected = reference(released, x)
    checkpoint = {'state_dict': {f'module.{key}': value for key, value in released.state.items()}}
    net = swap_convs(build(), dict(type='ODConv2d', num_experts=kernel_num))
    net.load_state_dict(convert_odconv(checkpoint), strict=True)
    net.eval()
    for ours, theirs in zip(net(x), expected, strict=True):
        assert theirs.std() > 1e-3, 'the reference died out, so the comparison would say nothing'
        torch.testing.assert_close(ours / theirs.abs().max(), theirs / theirs.abs().max(), rtol=0, atol=1e-5)


def test_refuses_what_is_no_released_net():
    with pytest.raises(ValueError, match='expected the layers of od_resnet.*got trunk'):
        convert_odconv({'trunk.conv1.weight': torch.zeros(1)})
    names = ('conv1', 'bn1', 'layer1.0.conv1', 'layer2.0.conv1', 'layer3.0.conv1', 'layer4.0.conv1')
    static = {f'{name}.weight': torch.zeros(1) for name in names}
    with pytest.raises(ValueError, match='no attention layers'):
        convert_odconv(static)
    with pytest.raises(ValueError, match='1 keys belong to no layer.*layer5.0.weight'):
        more = ('layer1.0.conv1.attention.fc.weight', 'layer5.0.weight')
        convert_odconv({**static, **{name: torch.zeros(1) for name in more}})
