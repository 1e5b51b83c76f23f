"""tools/convert_checkpoint.py end to end; the layouts themselves have tests of their own."""

import torch
from mmengine.registry import MODELS
from tiny_runs import run_tool

from mmkerneldna.checkpoints import kernel_dna
from mmkerneldna.checkpoints.loading import read_checkpoint


def released(arch, ours):
    """Our state dict under the released names: renamed, per-child tensors stacked."""
    layout = kernel_dna.LAYOUTS[arch]()
    theirs = {'fc.weight': torch.zeros(2, 2)}
    for name, prefix in layout.rename.items():
        for key, value in ours.items():
            if key.startswith(prefix + '.'):
                theirs[name + key[len(prefix) :]] = value
    for name, parts in layout.slices.items():
        theirs[name] = torch.stack([ours[part] for part in parts])
    return theirs


def test_converted_weights_load_into_the_backbone(tmp_path, capfd):
    net = MODELS.build(dict(type='KDNAResNet', depth=18))
    for tensor in net.state_dict().values():
        tensor.uniform_(0, 1) if tensor.is_floating_point() else None
    torch.save(dict(state_dict=released('resnet18', net.state_dict())), tmp_path / 'released.pth')
    argv = ['kdna-resnet18', str(tmp_path / 'released.pth'), str(tmp_path / 'ours.pth')]
    assert run_tool('convert_checkpoint.py', argv) == 0
    fresh = MODELS.build(
        dict(type='KDNAResNet', depth=18, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'ours.pth')))
    )
    fresh.init_weights()
    expected = net.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in fresh.state_dict().items())
    assert run_tool('convert_checkpoint.py', argv) == 2
    assert 'exists; name a new file' in capfd.readouterr().err


def test_checkpoint_of_another_net_is_refused(tmp_path, capfd):
    torch.save(dict(state_dict={'conv1.weight': torch.zeros(1)}), tmp_path / 'a.pth')
    assert run_tool('convert_checkpoint.py', ['odconv', str(tmp_path / 'a.pth'), str(tmp_path / 'b.pth')]) == 2
    assert 'error: ' in capfd.readouterr().err and not (tmp_path / 'b.pth').exists()
    assert read_checkpoint(tmp_path / 'a.pth')
