"""Files with ImageNet weights that torchvision publishes, which several models need."""

from collections.abc import Mapping

from kvq_batch.models.checkpoints.published_files import PublishedFile
from kvq_batch.models.checkpoints.tensors import Shape

RESNET50 = "resnet50"
VGG16 = "vgg16"
_ORIGIN = "download.pytorch.org/models"
_LICENCE = "BSD-3-Clause"


def _resnet50_shapes() -> Mapping[str, Shape]:
    from kvq_batch.models.backbones.resnet import ResNet50
    from kvq_batch.models.checkpoints.networks import network_shapes

    return network_shapes(ResNet50)


def _vgg16_shapes() -> Mapping[str, Shape]:
    from kvq_batch.models.backbones.vgg import Vgg16
    from kvq_batch.models.checkpoints.networks import network_shapes

    return network_shapes(Vgg16)


RESNET50_FILE = PublishedFile(
    part=RESNET50,
    # Both names are of the weights IMAGENET1K_V1; the second file is older.
    names=("resnet50-0676ba61.pth", "resnet50-19c8e357.pth"),
    kind="ResNet-50 of torchvision, ImageNet weights V1",
    origin=_ORIGIN,
    licence=_LICENCE,
    shapes=_resnet50_shapes,
    sha256=("0676ba61", "19c8e357"),
)
VGG16_FILE = PublishedFile(
    part=VGG16,
    names=("vgg16-397923af.pth",),
    kind="VGG-16 of torchvision, ImageNet weights V1",
    origin=_ORIGIN,
    licence=_LICENCE,
    shapes=_vgg16_shapes,
    sha256=("397923af",),
)
