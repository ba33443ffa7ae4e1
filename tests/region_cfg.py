"""A small Darknet network with a `[region]` head, for tests of class hierarchies."""


def region_cfg(*, size_hw: tuple[int, int], stride: int, classes: int, head_lines: str) -> str:
    """The text of a .cfg with two convolutions and a head of two anchors.

    Args:
        size_hw: of the input.
        stride: of the first convolution, so of the head.
        classes: of the head.
        head_lines: what else stands in its section, such as `tree=a.tree`.
    """
    return f"""[net]
width={size_hw[1]}
height={size_hw[0]}
channels=3
[convolutional]
batch_normalize=1
filters=8
size=3
stride={stride}
pad=1
activation=leaky
[convolutional]
filters={2 * (5 + classes)}
size=1
activation=linear
[region]
anchors=2,2, 5,6
classes={classes}
coords=4
num=2
softmax=1
{head_lines}
"""
