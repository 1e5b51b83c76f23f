"""Names of MobileNetV2's layers in torchvision's layout, which released nets follow, and in mmdet's."""

#: blocks in each stage
BLOCKS = (1, 2, 3, 4, 3, 3, 1)


def mobilenet_prefixes() -> dict[str, str]:
    """Their prefix -> mmdet's, for every convolution and norm (``features.2.conv.0.0`` -> ``layer2.0.expand_conv.conv``)."""
    prefixes = {
        'features.0.0': 'conv1.conv',
        'features.0.1': 'conv1.bn',
        'features.18.0': 'conv2.conv',
        'features.18.1': 'conv2.bn',
    }
    places = [(stage, block) for stage, blocks in enumerate(BLOCKS, start=1) for block in range(blocks)]
    for position, (stage, block) in enumerate(places, start=1):
        # the first block has no expansion
        names = ['expand_conv', 'depthwise_conv'] if position > 1 else ['depthwise_conv']
        theirs, ours = f'features.{position}.conv', f'layer{stage}.{block}'
        for i, name in enumerate(names):
            prefixes[f'{theirs}.{i}.0'], prefixes[f'{theirs}.{i}.1'] = f'{ours}.{name}.conv', f'{ours}.{name}.bn'
        prefixes[f'{theirs}.{len(names)}'] = f'{ours}.linear_conv.conv'
        prefixes[f'{theirs}.{len(names) + 1}'] = f'{ours}.linear_conv.bn'
    return prefixes
