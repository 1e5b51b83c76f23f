"""The released layout, computed by a reader of its own: keys and shapes as the authors' nets have them."""

import math

import pytest
import torch
import torch.nn.functional as F
from mmdet.models import MobileNetV2, ResNet

from mmkerneldna.checkpoints import convert_kernelwarehouse, kernelwarehouse_setting
from mmkerneldna.layers import swap_convs


class Released:
    """A random checkpoint in the released layout, and the convolutions it describes.

    ``convs``: (key, C_in, C_out, k, groups, warehouse) in the order of the authors' ``modules()``.
    """

    def __init__(self, convs, budget):
        self.state, self.convs = {}, {conv[0]: conv[1:] for conv in convs}
        warehouses = {}
        for _, c_in, c_out, k, groups, warehouse in convs:
            warehouses.setdefault(warehouse, []).append((c_out, c_in // groups, k))
        for number, shapes in warehouses.items():
            out, ins = (math.gcd(*(shape[i] for shape in shapes)) for i in (0, 1))
            cells = budget * sum(o * i * k * k for o, i, k in shapes) // (out * ins)
            self.state[f'warehouse_manager.weights.{number}'] = torch.randn(cells, out, ins, 1, 1) / 10
        for conv in convs:
            self._add_attention(*conv)

    def _add_attention(self, key, c_in, c_out, k, groups, warehouse):
        n, out, ins = self.cells(key).shape[:3]
        mixtures, hidden = c_out * c_in // groups * k * k // (out * ins), max(c_in // 16, 16)
        self._add(f'{key}.attention.fc1.weight', hidden, c_in)
        self.add_bn(f'{key}.attention.norm1', hidden)
        self._add(f'{key}.attention.fc2.weight', mixtures * (n + 1), hidden)
        self._add(f'{key}.attention.fc2.bias', mixtures * (n + 1))

    def _add(self, key, *shape):
        self.state[key] = torch.randn(shape)

    def add_bn(self, key, channels):
        for name in ('weight', 'bias', 'running_mean'):
            self._add(f'{key}.{name}', channels)
        self.state[f'{key}.running_var'] = torch.rand(channels) + 0.5
        self.state[f'{key}.num_batches_tracked'] = torch.tensor(7)

    def add_static(self, key, *shape):
        self.state[f'{key}.weight'] = torch.randn(shape) / 10

    def cells(self, key):
        return self.state[f'warehouse_manager.weights.{self.convs[key][-1]}']

    def bn(self, key, x):
        s = self.state
        return F.batch_norm(x, *(s[f'{key}.{n}'] for n in ('running_mean', 'running_var', 'weight', 'bias')))

    def conv(self, key, x, stride):
        """One image: every kernel element looked up in the mixture and cell it comes from."""
        c_in, c_out, k, groups, _ = self.convs[key]
        hidden = F.linear(x.mean((2, 3)), self.state[f'{key}.attention.fc1.weight'])
        hidden = torch.relu(self.bn(f'{key}.attention.norm1', hidden))
        z = F.linear(hidden, self.state[f'{key}.attention.fc2.weight'], self.state[f'{key}.attention.fc2.bias'])
        cells = self.cells(key)
        z = z.view(-1, len(cells) + 1)
        alpha = (z / (z.abs().sum(1, keepdim=True) + 1e-3))[:, :-1]
        out, ins = cells.shape[1:3]
        mixtures = torch.einsum('mn,noi->moi', alpha, cells[..., 0, 0])
        kernel = torch.empty(c_out, c_in // groups, k, k)
        tiles = iter(mixtures)
        for i in range(k):
            for j in range(k):
                for o in range(0, c_out, out):
                    for c in range(0, c_in // groups, ins):
                        kernel[o : o + out, c : c + ins, i, j] = next(tiles)
        return F.conv2d(x, kernel, stride=stride, padding=k // 2, groups=groups)


RESNET18 = [(f'layer{s + 1}.{b}', 64 * 2**s, 2 if s and not b else 1) for s in range(4) for b in range(2)]


def released_resnet18(budget):
    convs = []
    for block, width, stride in RESNET18:
        stage, first = int(block[5]) - 1, block[-1] == '0'
        before = max(stage - 1, 0) if first else stage  # what reads the previous stage's output shares its warehouse
        c_in = width // stride
        convs += [(f'{block}.conv1', c_in, width, 3, 1, before), (f'{block}.conv2', width, width, 3, 1, stage)]
        if stride == 2:
            convs.append((f'{block}.downsample.0', c_in, width, 1, 1, before))
    net = Released(convs, budget)
    net.add_static('conv1', 64, 3, 7, 7)
    net.add_bn('bn1', 64)
    for block, width, stride in RESNET18:
        for bn in ('bn1', 'bn2') + (('downsample.1',) if stride == 2 else ()):
            net.add_bn(f'{block}.{bn}', width)
    net.add_static('fc', 10, 512)
    return net


def run_resnet18(net, x):
    x = F.max_pool2d(F.relu(net.bn('bn1', F.conv2d(x, net.state['conv1.weight'], stride=2, padding=3))), 3, 2, 1)
    outputs = []
    for block, _, stride in RESNET18:
        y = F.relu(net.bn(f'{block}.bn1', net.conv(f'{block}.conv1', x, stride)))
        y = net.bn(f'{block}.bn2', net.conv(f'{block}.conv2', y, 1))
        if stride == 2:
            x = net.bn(f'{block}.downsample.1', net.conv(f'{block}.downsample.0', x, stride))
        x = F.relu(x + y)
        outputs.append(x)
    return outputs[1::2]


# (expansion, channels, blocks, stride) of MobileNetV2
MOBILE = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]


def mobile_blocks():
    """(position, C_in, hidden, C_out, stride, stage of the warehouse): a first block belongs to the stage before."""
    position, c_in = 1, 32
    for stage, (expand, c_out, blocks, stride) in enumerate(MOBILE, start=1):
        for b in range(blocks):
            yield position, c_in, c_in * expand, c_out, stride if b == 0 else 1, max(stage - (b == 0), 1)
            position, c_in = position + 1, c_out


def mobile_layers(position, c_in, hidden):
    """Keys of a block's convolutions and their norms: expand (not in the first block), depthwise, linear."""
    block = f'features.{position}.conv'
    activated = [(f'{block}.{i}.0', f'{block}.{i}.1') for i in range(1 if hidden == c_in else 2)]
    return [*activated, (f'{block}.{len(activated)}', f'{block}.{len(activated) + 1}')]


def released_mobilenet(budget, by_role):
    convs, names, bns = [('features.0.0', 3, 32, 3, 1, 0)], ['stem'], [('features.0.1', 32)]

    def number(stage, role):
        name = f'{stage} {role if by_role or role == "depthwise" else "pointwise"}'
        if name not in names:
            names.append(name)  # warehouses are numbered in the order of their first layer
        return names.index(name)

    for position, c_in, hidden, c_out, _, stage in mobile_blocks():
        keys = mobile_layers(position, c_in, hidden)
        shapes = [(c_in, hidden, 1, 1, 'expand'), (hidden, hidden, 3, hidden, 'depthwise'), (hidden, c_out, 1, 1, 'project')]
        for (key, bn), (ins, out, k, groups, role) in zip(keys, shapes[-len(keys) :]):
            convs.append((key, ins, out, k, groups, number(stage, role)))
            bns.append((bn, out))
    convs.append(('features.18.0', 320, 1280, 1, 1, number(6, 'project')))
    net = Released(convs, budget)
    for bn, channels in [*bns, ('features.18.1', 1280)]:
        net.add_bn(bn, channels)
    net.add_static('classifier', 10, 1280)
    return net


def run_mobilenet(net, x):
    x = F.relu6(net.bn('features.0.1', net.conv('features.0.0', x, 2)))
    for position, c_in, hidden, c_out, stride, _ in mobile_blocks():
        keys, y = mobile_layers(position, c_in, hidden), x
        for i, (key, bn) in enumerate(keys):
            depthwise = i == len(keys) - 2
            y = net.bn(bn, net.conv(key, y, stride if depthwise else 1))
            y = y if i == len(keys) - 1 else F.relu6(y)
        x = x + y if stride == 1 and c_in == c_out else y
    return [F.relu6(net.bn('features.18.1', net.conv('features.18.0', x, 1)))]


CASES = [
    pytest.param(lambda: released_resnet18(1), run_resnet18, 'resnet18', '1x', id='resnet18-1x'),
    pytest.param(lambda: released_resnet18(4), run_resnet18, 'resnet18', '4x', id='resnet18-4x'),
    pytest.param(lambda: released_mobilenet(1, False), run_mobilenet, 'mobilenet_v2', '1x', id='mobilenet-1x'),
    pytest.param(lambda: released_mobilenet(4, True), run_mobilenet, 'mobilenet_v2', '4x', id='mobilenet-4x'),
]


@pytest.mark.parametrize('release, run, arch, scale', CASES)
def test_features_agree_with_the_released_layout(release, run, arch, scale):
    released = release()
    checkpoint = dict(model={f'module.{key}': value for key, value in released.state.items()}, epoch=300)
    setting = kernelwarehouse_setting(checkpoint)
    assert (setting.arch, setting.scale, setting.width) == (arch, scale, 1)
    net = swap_convs(ResNet(18) if arch == 'resnet18' else MobileNetV2(out_indices=(7,)), setting.conv)
    net.load_state_dict(convert_kernelwarehouse(checkpoint), strict=True)
    net.eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        ours = net(x)
        for i, image in enumerate(x.split(1)):
            for feature, expected in zip(ours, run(released, image), strict=True):
                error = (feature[i] - expected[0]).abs().max() / expected.abs().max()
                assert error < 1e-5 and expected.std() > 0


def test_refuses():
    state = released_resnet18(1).state
    with pytest.raises(ValueError, match="no 'warehouse_manager.weights"):
        convert_kernelwarehouse({'conv1.weight': torch.zeros(1)})
    with pytest.raises(ValueError, match='resnet18 with warehouses of .* is none of the published settings'):
        convert_kernelwarehouse({**state, 'warehouse_manager.weights.0': torch.zeros(5, 64, 64, 1, 1)})
    without = {key: value for key, value in state.items() if key != 'layer3.1.conv1.attention.fc2.bias'}
    with pytest.raises(ValueError, match=r"1 keys are missing \(\['layer3.1.conv1.attention.fc2.bias'\]"):
        convert_kernelwarehouse(without)
    with pytest.raises(ValueError, match=r"1 do not belong to it \(\['head.bias'\]"):
        convert_kernelwarehouse({**state, 'head.bias': torch.zeros(1)})
