import numpy as np
import torch
from helpers import randomise
from mmdet.models.backbones import ResNet
from torch import nn

from mmkerneldna.launch.routing_pictures import MapSizes, Seen, block_figure, last_decisions, paint_masks, short_name
from mmkerneldna.routing import decisions, keep_gates, skip_blocks, sparse_blocks


def test_what_is_not_computed_is_dark_at_the_right_place():
    net = sparse_blocks(ResNet(18, base_channels=8), 0.5, tile=8, stages=(0,))
    (path,) = keep_gates(net)
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[1, 2] = True  # positions 8 to 16, 16 to 24 of a 20 x 30 map: rows 32 to 64, columns 64 to 96 of the picture
    picture = np.full((80, 120, 3), 200, dtype=np.uint8)
    painted = paint_masks(picture, Seen({path: mask}, {path: (20, 30)}), keep_gates(net))
    light = painted[:80, :120, 0] == 200
    expected = np.zeros((80, 120), dtype=bool)
    expected[32:64, 64:96] = True
    assert np.array_equal(light, expected) and (painted[:80, :120][~expected] == 50).all()
    assert block_figure(['a'], [Seen({path: mask}, {path: (20, 30)})], keep_gates(net)) is None


@torch.no_grad()
def test_a_table_of_images_and_blocks():
    net = randomise(skip_blocks(ResNet(18, base_channels=8), 0.5))
    for gate in net.routing_gates.values():
        nn.init.zeros_(gate.fc2.weight)
    net.routing_gates['layer2_1'].set_threshold(10.0)
    net.eval()
    with decisions(net) as seen, MapSizes(net) as sizes:
        net(torch.randn(1, 3, 64, 96))
        one = last_decisions(seen, sizes)
    assert sizes == {f'routing_gates.layer{i}_1': (64 // 2**i // 2, 96 // 2**i // 2) for i in range(1, 5)}
    gates = keep_gates(net)
    axis = block_figure(['first', 'second'], [one, one], gates).axes[0]
    (image,) = axis.get_images()
    assert image.get_array().tolist() == [[True, False, True, True]] * 2
    assert [label.get_text() for label in axis.get_xticklabels()][:2] == ['layer1.1\n100%', 'layer2.1\n0%']
    assert [label.get_text() for label in axis.get_yticklabels()] == ['first', 'second']
    assert paint_masks(np.zeros((4, 4, 3), np.uint8), one, gates) is None
    assert short_name('backbone.routing_gates.layer3_2') == 'layer3.2'
