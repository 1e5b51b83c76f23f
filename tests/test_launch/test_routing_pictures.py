import numpy as np
import torch
from helpers import randomise
from mmdet.models.backbones import ResNet
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmkerneldna.launch.routing_pictures import block_figure, paint_experts, paint_masks, short_name
from mmkerneldna.launch.routing_record import Seen, record_routing, without_pictures
from mmkerneldna.layers import MoEConv2d
from mmkerneldna.routing import PositionFFN2d, PositionMoE2d, RoutingAttention2d, keep_gates, skip_blocks, sparse_blocks


def test_what_is_not_computed_is_dark_at_the_right_place():
    net = sparse_blocks(ResNet(18, base_channels=8), 0.5, tile=8, stages=(0,))
    (path,) = keep_gates(net)
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[1, 2] = True  # positions 8 to 16, 16 to 24 of a 20 x 30 map: rows 32 to 64, columns 64 to 96 of the picture
    picture = np.full((80, 120, 3), 200, dtype=np.uint8)
    seen = Seen({path: mask}, {path: 8}, {path: (20, 30)})
    painted = paint_masks(picture, seen)
    light = painted[:80, :120, 0] == 200
    expected = np.zeros((80, 120), dtype=bool)
    expected[32:64, 64:96] = True
    assert np.array_equal(light, expected) and (painted[:80, :120][~expected] == 50).all()
    assert block_figure(['a'], [seen]) is None and paint_experts(picture, seen) is None


def test_padding_is_not_in_the_picture():
    mask = torch.tensor([[True, False], [False, False]])
    painted = paint_masks(np.full((16, 16, 3), 200, np.uint8), Seen({'a': mask}, {'a': 4}, {'a': (8, 8)}, {}, (0.5, 1.0)))
    assert (painted[:16, :8] == 200).all() and (painted[:16, 8:16] == 50).all()


def test_colours_are_those_of_the_experts():
    numbers = torch.tensor([[0, 0], [0, 3]])
    painted = paint_experts(np.zeros((40, 40, 3), np.uint8), Seen(numbers=dict(a=numbers, image=torch.tensor([[1]]))))
    assert painted.shape[1] == 40 and len(np.unique(painted[:40].reshape(-1, 3), axis=0)) == 2
    assert (painted[:20, :40] == painted[0, 0]).all() and (painted[20:40, 20:40] == painted[39, 39]).all()


class Layers(nn.Module):
    """Experts of images and of positions, by linear gates and by trees, and a gate that asks for a finer map."""

    def __init__(self):
        super().__init__()
        tree = dict(num_experts=4, gate=dict(type='TreeRouter'))
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.images, self.tree_images = MoEConv2d(8, 8, 1), MoEConv2d(8, 8, 1, **tree)
        self.positions, self.tree_positions = PositionMoE2d(8, 8, stride=2), PositionFFN2d(8, 8, **tree)
        self.attention = RoutingAttention2d(8, region=2)

    def forward(self, x):
        x = self.tree_images(self.images(self.stem(x)))
        return self.attention(self.tree_positions(self.positions(x)))


@torch.no_grad()
def test_records_the_experts_of_the_last_image():
    net = Layers().eval()
    for linear in (m for m in net.modules() if isinstance(m, nn.Linear)):
        nn.init.normal_(linear.weight)
    inputs = {}
    for name, layer in net.named_children():
        layer.register_forward_pre_hook(lambda m, args, name=name: inputs.__setitem__(name, args[0]))
    with record_routing(net) as record:
        net(torch.randn(3, 3, 16, 24))
        numbers = record.last().numbers
    assert {name: tuple(found.shape) for name, found in numbers.items()} == {
        **dict.fromkeys(('images', 'tree_images'), (1, 1)),
        **dict.fromkeys(('positions', 'tree_positions'), (4, 6)),
    }
    for name, found in numbers.items():  # the last image alone is sent to the same experts
        layer, x = net.get_submodule(name), inputs[name][-1:]
        x = x[:, :, ::2, ::2].permute(0, 2, 3, 1).flatten(0, 2) if name == 'positions' else x
        x = x.permute(0, 2, 3, 1).flatten(0, 2) if name == 'tree_positions' else x
        x = x.mean((2, 3)) if 'images' in name else x
        assert torch.equal(layer.choose(x)[1].flatten(), found.flatten())
    assert len(torch.cat([found.flatten() for found in numbers.values()]).unique()) > 1
    assert without_pictures(net) == ['attention'] and not net.stem._forward_hooks and not net.images.gate._forward_hooks


@torch.no_grad()
def test_records_where_a_head_queries():
    with DefaultScope.overwrite_default_scope('mmdet'):
        head = MODELS.build(
            dict(
                type='SparseQueryRetinaHead', num_classes=2, in_channels=4, feat_channels=4, query=dict(tile=8),
                anchor_generator=dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=1, ratios=[1.0],
                                      strides=[4, 8]),
            )
        ).eval()  # fmt: skip
    with record_routing(head) as record:
        head.ask_gates((torch.randn(1, 4, 32, 48), torch.randn(1, 4, 16, 24)))
        seen = record.last()
    assert seen.maps == {'query_gate': (32, 48)} and seen.tiles == {'query_gate': 8}
    assert seen.masks['query_gate'].shape == (4, 6) and paint_masks(np.zeros((8, 12, 3), np.uint8), seen) is not None


@torch.no_grad()
def test_a_table_of_images_and_blocks():
    net = randomise(skip_blocks(ResNet(18, base_channels=8), 0.5))
    for gate in net.routing_gates.values():
        nn.init.zeros_(gate.fc2.weight)
    net.routing_gates['layer2_1'].set_threshold(10.0)
    net.eval()
    with record_routing(net) as record:
        net(torch.randn(1, 3, 64, 96))
        one = record.last()
    assert record.sizes == {f'routing_gates.layer{i}_1': (64 // 2**i // 2, 96 // 2**i // 2) for i in range(1, 5)}
    axis = block_figure(['first', 'second'], [one, one]).axes[0]
    (image,) = axis.get_images()
    assert image.get_array().tolist() == [[True, False, True, True]] * 2
    assert [label.get_text() for label in axis.get_xticklabels()][:2] == ['layer1.1\n100%', 'layer2.1\n0%']
    assert [label.get_text() for label in axis.get_yticklabels()] == ['first', 'second']
    assert paint_masks(np.zeros((4, 4, 3), np.uint8), one) is None
    assert short_name('bbox_head.query_gate') == 'bbox_head.query_gate'
    assert short_name('backbone.routing_gates.layer3_2') == 'layer3.2'
