"""The names that `load_teacher` takes, as strings alone: help shows them without loading torch."""

DIGITS_NAMES = ("resnet", "mobilenet", "vgg")
CIFAR10_NAMES = ("resnet20", "vgg11_bn", "mobilenet_v2", "shufflenet_v2")
DEFAULT_TEACHER = "digits/mobilenet"

TEACHERS = {
    "digits/resnet": "residual blocks, on 16x16 digits; embedded",
    "digits/mobilenet": "depthwise convolutions, linear bottlenecks, ReLU6, on 16x16 digits; embedded",
    "digits/vgg": "plain convolutions, on 16x16 digits; embedded",
    "cifar10/resnet20": "He et al.'s CIFAR ResNet; needs a checkpoint",
    "cifar10/vgg11_bn": "a narrow VGG with BatchNorm; needs a checkpoint",
    "cifar10/mobilenet_v2": "torchvision's at half width; needs a checkpoint",
    "cifar10/shufflenet_v2": "torchvision's at half width; needs a checkpoint",
    "torchvision/NAME": "an image classifier of torchvision.models; its default weights, or a checkpoint",
    "timm/NAME": "an image classifier of timm; its pretrained weights, or a checkpoint",
}
