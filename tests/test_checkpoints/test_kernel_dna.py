"""Naive forwards that read the authors' key layout straight from the state dict, against our converted backbones."""

import pytest
import torch
import torch.nn.functional as F

from mmkerneldna.backbones import KDNAMobileNetV2, KDNAResNet
from mmkerneldna.checkpoints import convert_official


class Official:
    """A state dict that comes into being as the naive forward asks for its entries."""

    def __init__(self):
        self.state, self.generator = {}, torch.Generator().manual_seed(0)

    def get(self, key, *shape, low=None, high=None):
        if key not in self.state:
            value = torch.empty(shape)
            if low is None:
                fan = value[0].numel() if value.dim() > 1 else 10
                value.normal_(0, (2 / fan) ** 0.5, generator=self.generator)
            else:
                value.uniform_(low, high, generator=self.generator)
            self.state[key] = value
        return self.state[key]

    def bn(self, x, name):
        c = x.shape[1]
        self.state.setdefault(f'{name}.num_batches_tracked', torch.tensor(3))
        mean, var = self.get(f'{name}.running_mean', c), self.get(f'{name}.running_var', c, low=0.5, high=2.0)
        weight, bias = self.get(f'{name}.weight', c, low=0.5, high=1.5), self.get(f'{name}.bias', c)
        shape = (1, c, 1, 1)
        return (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt() * weight.view(shape) + bias.view(shape)

    def conv(self, x, name, out, k, stride=1, groups=1):
        return F.conv2d(x, self.get(f'{name}.weight', out, x.shape[1] // groups, k, k), None, stride, k // 2, 1, groups)

    def gate(self, x, name, reduction=4):
        c = x.shape[1]
        h = x.mean((2, 3), keepdim=True)
        h = self.bn(self.conv(h, f'{name}.se.fc1', c // reduction, 1), f'{name}.se.bn').clamp(min=0)
        return x * torch.sigmoid(self.conv(h, f'{name}.se.fc2', c, 1) + self.get(f'{name}.se.fc2.bias', c).view(1, c, 1, 1))

    def stem(self, x):
        return F.max_pool2d(self.bn(self.conv(x, 'conv1', 64, 7, 2), 'bn1').relu(), 3, 2, 1)

    def basic(self, x, name, planes, stride):
        identity = x
        if stride > 1:
            identity = self.bn(self.conv(x, f'{name}.downsample.0', planes, 1, stride), f'{name}.downsample.1')
        y = self.bn(self.conv(x, f'{name}.conv1', planes, 3, stride), f'{name}.bn1').relu()
        return (self.bn(self.conv(y, f'{name}.conv2', planes, 3), f'{name}.bn2') + identity).relu()

    def plain_bottleneck(self, x, name, planes, stride, first):
        identity = x
        if first:
            identity = self.bn(self.conv(x, f'{name}.downsample.0', planes * 4, 1, stride), f'{name}.downsample.1')
        y = self.bn(self.conv(x, f'{name}.conv1', planes, 1), f'{name}.bn1').relu()
        y = self.bn(self.conv(y, f'{name}.conv2', planes, 3, stride), f'{name}.bn2').relu()
        return (self.bn(self.conv(y, f'{name}.conv3', planes * 4, 1), f'{name}.bn3') + identity).relu()


def resnet18(net, x):
    x = net.stem(x)
    for s, planes in ((1, 64), (2, 128)):
        for b in range(2):
            x = net.basic(x, f'layer{s}.{b}', planes, 2 if s == 2 and b == 0 else 1)
        yield x
    for name, c in (('layer3', 256), ('layer4', 512)):
        spatial = net.get(f'{name}.static_spatial_attn', 3, 1, 1, 3, 3)
        filters = net.get(f'{name}.static_filter_attn', 3, c, 1, 1, 1)

        def kid(x, i, parent):
            kernel = net.get(f'{name}.{parent}.weight', c, c, 3, 3) * (1 + spatial[i]) * (1 + filters[i])
            return net.bn(F.conv2d(net.gate(x, f'{name}.se.{i}'), kernel, padding=1), f'{name}.bns.{i}')

        identity = net.bn(net.conv(x, f'{name}.downsample.0', c, 1, 2), f'{name}.downsample.1')
        x = net.bn(net.conv(x, f'{name}.conv1', c, 3, 2), f'{name}.bn1').relu()
        x = (kid(x, 0, 'conv2') + identity).relu()
        for i, conv in ((1, 'conv2'), (2, 'conv3')):
            y = kid(x, i, conv).relu()
            x = (net.bn(net.conv(y, f'{name}.{conv}', c, 3), f'{name}.bn{conv[-1]}') + x).relu()
        yield x
    net.get('fc.weight', 10, 512)


def resnet50(net, x):
    x = net.stem(x)
    for s, planes, blocks in ((1, 64, 3), (2, 128, 4)):
        for b in range(blocks):
            x = net.plain_bottleneck(x, f'layer{s}.{b}', planes, 2 if s == 2 and b == 0 else 1, b == 0)
        yield x

    def own(x, name, dim, stride=1, first=False):
        layers = f'{name}.layers'
        identity = net.bn(net.conv(x, f'{name}.downsample.conv', dim * 4, 1, stride), f'{name}.downsample.bn') if first else x
        y = net.bn(net.conv(x, f'{layers}.conv1', dim, 1), f'{layers}.bn1').relu()
        y = net.bn(net.conv(y, f'{layers}.conv2', dim, 3, stride), f'{layers}.bn2').relu()
        return (net.bn(net.conv(y, f'{layers}.conv3', dim * 4, 1), f'{layers}.bn3') + identity).relu()

    def kid(x, name, dim, kernel):
        y = net.bn(net.conv(x, f'{name}.half1.conv1', dim, 1), f'{name}.half1.bn1').relu()
        y = F.conv2d(net.gate(y, f'{name}.half1.se'), kernel, padding=1)
        y = net.bn(y, f'{name}.half2.bn2').relu()
        return (net.bn(net.conv(y, f'{name}.half2.conv3', dim * 4, 1), f'{name}.half2.bn3') + x).relu()

    for stage, dim, kids, parents, filters in (
        ('layer3', 256, 'kids', ['parents.0', 'parents.1', 'parents.2'], 'static_filter_attn'),
        ('layer4', 512, 'blocks', ['last_block'], 'static_filter_attn2'),
    ):
        x = own(x, f'{stage}.block0', dim, 2, True)
        n = len(parents)
        f, s = net.get(f'{stage}.{filters}', n, dim, 1, 1, 1), net.get(f'{stage}.static_spatial_attn', n, 1, 1, 3, 3)
        for i, parent in enumerate(parents):
            kernel = net.get(f'{stage}.{parent}.layers.conv2.weight', dim, dim, 3, 3) * (1 + f[i]) * (1 + s[i])
            x = own(kid(x, f'{stage}.{kids}.{i}', dim, kernel), f'{stage}.{parent}', dim)
        yield x


def mobilenet_v2(net, x, channels=(32, 16, 24, 32, 64, 96, 160, 320)):
    stem, c1, c2, *shared, last = channels

    def act(x):
        return x.clamp(0, 6)

    def torchvision_block(x, name, out, stride, expand=True):
        y, hidden, i = x, x.shape[1] * 6, 0
        if expand:
            y, i = act(net.bn(net.conv(y, f'{name}.0.0', hidden, 1), f'{name}.0.1')), 1
        c = y.shape[1]
        y = act(net.bn(net.conv(y, f'{name}.{i}.0', c, 3, stride, c), f'{name}.{i}.1'))
        y = net.bn(net.conv(y, f'{name}.{i + 1}', out, 1), f'{name}.{i + 2}')
        return x + y if stride == 1 and out == x.shape[1] else y

    def layers(x, name, out, stride):
        hidden = x.shape[1] * 6
        y = act(net.bn(net.conv(x, f'{name}.pw1', hidden, 1), f'{name}.bn1'))
        y = act(net.bn(net.conv(y, f'{name}.dw', hidden, 3, stride, hidden), f'{name}.bn2'))
        return net.bn(net.conv(y, f'{name}.pw2', out, 1), f'{name}.bn3')

    x = act(net.bn(net.conv(x, 'features.0.0', stem, 3, 2), 'features.0.1'))
    x = torchvision_block(x, 'features.1.conv', c1, 1, expand=False)
    x = torchvision_block(torchvision_block(x, 'features.2.conv', c2, 2), 'features.3.conv', c2, 1)
    yield x
    for (position, kids, stride), c in zip(((6, 1, 2), (10, 2, 2), (13, 1, 1), (16, 1, 2)), shared):
        name, h = f'features.{position}', c * 6
        x = layers(x, f'{name}.transition.layers', c, stride)
        expand = net.get(f'{name}.last_block.layers.pw1.weight', h, c, 1, 1)
        project = net.get(f'{name}.last_block.layers.pw2.weight', c, h, 1, 1)
        f1 = net.get(f'{name}.static_filter_attn1', kids, h, 1, 1, 1)
        f3 = net.get(f'{name}.static_filter_attn3', kids, c, 1, 1, 1)
        for i in range(kids):
            kid = f'{name}.blocks.{i}'
            y = act(net.bn(F.conv2d(net.gate(x, f'{kid}.se1'), expand * (1 + f1[i])), f'{kid}.bn1'))
            y = act(net.bn(net.conv(y, f'{kid}.dwconv', h, 3, 1, h), f'{kid}.bn2'))
            x = x + net.bn(F.conv2d(net.gate(y, f'{kid}.se3', 24), project * (1 + f3[i])), f'{kid}.bn3')
        x = x + layers(x, f'{name}.last_block.layers', c, 1)
        if position in (6, 13):
            yield x
    x = torchvision_block(x, 'features.17.conv', last, 1)
    yield act(net.bn(net.conv(x, 'features.18.0', 1280, 1), 'features.18.1'))


CASES = {
    'resnet18': (resnet18, lambda: KDNAResNet(18)),
    'resnet50': (resnet50, lambda: KDNAResNet(50)),
    'mobilenet_v2': (mobilenet_v2, KDNAMobileNetV2),
    'mobilenet_v2_0.5': (lambda net, x: mobilenet_v2(net, x, (16, 8, 16, 16, 32, 48, 80, 160)), lambda: KDNAMobileNetV2(0.5)),
}


@pytest.fixture(scope='module', params=CASES)
def case(request):
    naive, build = CASES[request.param]
    official, x = Official(), torch.randn(2, 3, 64, 64)
    return request.param, official.state, x, list(naive(official, x)), build


@torch.no_grad()
def test_features_agree(case):
    arch, state, x, expected, build = case
    ours = build()
    ours.load_state_dict(convert_official(state, arch), strict=True)
    for feature, reference in zip(ours.eval()(x), expected, strict=True):
        torch.testing.assert_close(feature, reference, rtol=1e-5, atol=1e-5 * reference.abs().max().item())


def test_nesting_prefix_and_classifier(case):
    arch, state, _, _, _ = case
    wrapped = {'epoch': 3, 'state_dict': {f'module.{k}': v for k, v in state.items()}}
    assert convert_official(wrapped, arch).keys() == convert_official(state, arch).keys()
    assert not any(k.startswith(('fc', 'classifier')) for k in convert_official(state, arch))


def test_what_is_no_such_checkpoint_is_refused(case):
    arch, state, *_ = case
    with pytest.raises(ValueError, match='keys do not belong to it .*surprise'):
        convert_official({**state, 'surprise.weight': torch.zeros(1)}, arch)
    with pytest.raises(ValueError, match=r'1 layers are missing \((features.18.0|layer1)'):
        gone = 'features.18.0' if 'mobile' in arch else 'layer1'
        convert_official({k: v for k, v in state.items() if not k.startswith(gone + '.')}, arch)


def test_unknown_arch():
    with pytest.raises(ValueError, match="arch='resnet34' must be one of 'resnet18', 'resnet50'"):
        convert_official({'conv1.weight': torch.zeros(1)}, 'resnet34')
