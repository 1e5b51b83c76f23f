from urllib.error import URLError

import pytest
import torch
from helpers import Payload
from mmdet.models import ResNet
from mmengine.model.weight_init import PretrainedInit

from mmkerneldna.checkpoints import remote
from mmkerneldna.checkpoints.loading import install_safe_loading
from mmkerneldna.errors import CheckpointError

RESNET18 = 'https://download.pytorch.org/models/resnet18-f37072fd.pth'


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty TORCH_HOME and MMENGINE_HOME, and no network."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path / 'mmengine'))
    monkeypatch.setattr(torch.hub, '_hub_dir', None)
    asked = []

    def no_network(url, dst, *args, **kwargs):
        asked.append((url, dst))
        raise URLError(OSError(-2, 'Name or service not known'))

    monkeypatch.setattr(torch.hub, 'download_url_to_file', no_network)
    return tmp_path, asked


@pytest.mark.parametrize(
    'name, url',
    [
        ('torchvision://resnet18', RESNET18),
        ('modelzoo://resnet18', RESNET18),
        ('https://example.org/nets/a.pth?download=1', 'https://example.org/nets/a.pth?download=1'),
    ],
)
def test_one_error_says_what_to_download_and_where_to_put_it(home, name, url):
    folder = home[0] / 'torch' / 'hub' / 'checkpoints'
    file_name = url.rpartition('/')[2].partition('?')[0]
    with pytest.raises(CheckpointError) as error:
        remote.fetch(name)
    assert home[1] == [(url, str(folder / file_name))]
    text = str(error.value)
    assert '\n' not in text and 'Name or service not known' in text
    assert f'checkpoint {name} is not on this machine' in text
    assert f'download {url} where' in text and f'put the file {file_name} into {folder}' in text


@pytest.mark.parametrize(
    'name, ending',
    [
        ('open-mmlab://detectron2/resnet50_caffe', '/resnet50_msra-5891d200.pth'),
        ('openmmlab://resnet50_caffe', '/resnet50_caffe-788b5fa3.pth'),  # an old name of detectron/resnet50_caffe
        ('mmcls://resnet18', '/resnet18_8xb32_in1k_20210831-fbbb1da6.pth'),
    ],
)
def test_short_names_of_openmmlab(home, name, ending):
    with pytest.raises(CheckpointError, match=f'put the file {ending[1:]} into'):
        remote.fetch(name)
    assert home[1][0][0].startswith('https://') and home[1][0][0].endswith(ending)


@pytest.mark.parametrize(
    'name, near',
    [
        ('torchvision://resnet5', 'resnet50'),
        ('open-mmlab://resnet50_cafe', 'resnet50_caffe'),
        ('mmcls://resnet-18', 'resnet18'),
    ],
)
def test_unknown_short_names(home, name, near):
    with pytest.raises(CheckpointError, match=f'{name} is not known.*nearest: .*{near}'):
        remote.fetch(name)
    assert not home[1]


@pytest.mark.parametrize('folder', ['hub/checkpoints', 'checkpoints'])
def test_a_file_put_there_by_hand_is_read(home, folder):
    path = home[0] / 'torch' / folder / 'resnet18-f37072fd.pth'
    path.parent.mkdir(parents=True)
    torch.save(dict(fc=torch.ones(2)), path)
    assert torch.equal(remote.fetch('torchvision://resnet18')['fc'], torch.ones(2))
    assert not home[1]


def test_a_download_is_read_and_kept(home, monkeypatch):
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda url, dst, **kwargs: torch.save(dict(url=url), dst))
    assert remote.fetch('torchvision://resnet18')['url'] == RESNET18
    monkeypatch.setattr(torch.hub, 'download_url_to_file', None)
    assert remote.fetch('torchvision://resnet18')['url'] == RESNET18


def test_a_download_runs_no_code(home, loaders, monkeypatch):
    evil = dict(extra=Payload(home[0] / 'made'))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda url, dst, **kwargs: torch.save(evil, dst))
    with pytest.raises(CheckpointError, match='mkdir.*--unsafe-checkpoint'):
        remote.fetch('https://example.org/a.pth')
    assert not (home[0] / 'made').exists()
    remote.fetch('https://example.org/a.pth', unsafe=True)
    assert (home[0] / 'made').is_dir()


def test_a_classifier_of_mmcls_gives_its_backbone(home, monkeypatch):
    held = dict(state_dict={'backbone.conv1.weight': torch.ones(1), 'head.fc.weight': torch.ones(2)})
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda url, dst, **kwargs: torch.save(held, dst))
    assert list(remote.fetch('mmcls://resnet18')['state_dict']) == ['conv1.weight']


def test_a_table_of_the_user_may_name_files(home):
    (home[0] / 'mmengine').mkdir()
    (home[0] / 'mmengine' / 'open_mmlab.json').write_text('{"mine": "nets/mine.pth"}')
    (home[0] / 'mmengine' / 'nets').mkdir()
    torch.save(dict(a=torch.ones(1)), home[0] / 'mmengine' / 'nets' / 'mine.pth')
    assert list(remote.fetch('open-mmlab://mine')) == ['a']


def test_a_folder_that_can_not_be_made(home):
    (home[0] / 'torch').write_text('a file in the way')
    with pytest.raises(CheckpointError, match='(Not a directory|File exists).*put the file'):
        remote.fetch('torchvision://resnet18')


@pytest.mark.parametrize('name', ['torchvision://resnet18', RESNET18])
def test_init_cfg_goes_through_it_without_torchvision(home, loaders, monkeypatch, name):
    source = ResNet(18)
    monkeypatch.setattr(remote, '_has_torchvision', lambda: False)
    install_safe_loading()
    net = ResNet(18, init_cfg=dict(type='Pretrained', checkpoint=name))
    with pytest.raises(CheckpointError, match='put the file resnet18-f37072fd.pth into'):
        net.init_weights()
    torch.save(source.state_dict(), home[0] / 'torch' / 'hub' / 'checkpoints' / 'resnet18-f37072fd.pth')
    PretrainedInit(name)(net)
    assert torch.equal(net.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
