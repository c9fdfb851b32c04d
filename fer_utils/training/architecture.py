"""The networks as layers with random weights: two backbones, their preprocessing and the specification's head."""

from fer_utils.classes import CLASSES

import keras
from keras import layers

PREPROCESSING = "preprocessing"
RESNET50, SMALL = "resnet50", "small"  # the backbones: values of the parameter, and names of the layer in the model
FEATURES = "pooled_features"
HEAD_LAYERS = ("head_dense", "head_batch_norm", "head_dropout", "probabilities")
# Keras' 0.99 needs about 500 steps to forget the initial statistics, more than a small dataset has.
TRAINED_NORM_MOMENTUM = 0.9
# Width and number of blocks of each stage; each but the first halves the side. At 48 px 123 million multiply-adds.
SMALL_STAGES = ((16, 1), (64, 1), (128, 1), (208, 2))


def untrained(image_size: int, backbone: str) -> keras.Model:
    """The network of network.build with random weights, for those of a file or of another model."""
    return assembled(random_backbone(image_size, backbone))


def assembled(backbone: keras.Model) -> keras.Model:
    """The whole network: preprocessing, this backbone in inference mode, and a new head."""
    raw = keras.Input((None, None, 1), name="raw_grey")
    x = backbone(_preprocessing(backbone.input_shape[1], backbone.name)(raw), training=False)
    x = layers.GlobalAveragePooling2D(name=FEATURES)(x)
    x = layers.Dense(32, activation="relu", name=HEAD_LAYERS[0])(x)
    x = layers.BatchNormalization(momentum=TRAINED_NORM_MOMENTUM, name=HEAD_LAYERS[1])(x)
    x = layers.Dropout(0.4, name=HEAD_LAYERS[2])(x)
    x = layers.Dense(len(CLASSES), activation="softmax", dtype="float32", name=HEAD_LAYERS[3])(x)
    return keras.Model(raw, x, name=f"fer_{backbone.name}")


def _preprocessing(image_size: int, backbone: str) -> keras.Model:
    # In float32 whatever the policy: bfloat16's 8 bits of mantissa cannot hold grey levels less a mean.
    raw = keras.Input((None, None, 1), name="raw_grey")
    if backbone == SMALL:
        x = layers.Resizing(image_size, image_size, name="resize", dtype="float32")(raw)
        # Each picture gets mean 0 and variance 1: light and contrast do not matter.
        x = layers.LayerNormalization(axis=(1, 2, 3), center=False, scale=False, name="standardise", dtype="float32")(x)
        return keras.Model(raw, x, name=PREPROCESSING)
    x = layers.Concatenate(name="grey_to_rgb", dtype="float32")([raw, raw, raw])
    x = layers.Resizing(image_size, image_size, name="resize", dtype="float32")(x)
    return keras.Model(raw, keras.applications.resnet50.preprocess_input(x), name=PREPROCESSING)


def random_backbone(image_size: int, name: str) -> keras.Model:
    """The backbone `name` without top, frozen, with random weights."""
    if name == SMALL:
        backbone = small(image_size)
    else:
        shape = image_size, image_size, 3
        backbone = keras.applications.ResNet50(include_top=False, weights=None, input_shape=shape, name=RESNET50)
    backbone.trainable = False
    return backbone


def small(image_size: int) -> keras.Model:
    """A residual network for small faces, with random weights; input: (n, image_size, image_size, 1), standardised.

    As the networks for 32-px pictures of He et al. 2016 (arXiv:1512.03385, section 4.2) it begins with a 3×3 convolution
    and halves the picture late, since a face of 48 pixels has no detail to lose. Where the width changes, a 1×1 convolution
    is the shortcut, as in ResNet50. Each block starts as its shortcut (see network.load_backbone).
    """

    def convolution(x, width: int, size: int, stride: int, name: str, gamma: str = "ones"):
        x = layers.Conv2D(width, size, stride, "same", use_bias=False, name=f"{name}_conv")(x)
        return layers.BatchNormalization(gamma_initializer=gamma, name=f"{name}_bn")(x)

    pixels = keras.Input((image_size, image_size, 1))
    x = layers.ReLU(name="stem_relu")(convolution(pixels, SMALL_STAGES[0][0], 3, 1, "stem"))
    for stage, (width, n_blocks) in enumerate(SMALL_STAGES, 1):
        for block in range(n_blocks):
            name, stride = f"stage{stage}_block{block + 1}", 2 if stage > 1 and block == 0 else 1
            shortcut = x if x.shape[-1] == width else convolution(x, width, 1, stride, f"{name}_0")
            branch = layers.ReLU(name=f"{name}_1_relu")(convolution(x, width, 3, stride, f"{name}_1"))
            branch = convolution(branch, width, 3, 1, f"{name}_2", gamma="zeros")
            x = layers.ReLU(name=f"{name}_out")(layers.Add(name=f"{name}_add")([shortcut, branch]))
    return keras.Model(pixels, x, name=SMALL)


def backbone_of(model: keras.Model) -> keras.Model:
    """The backbone of a whole network."""
    return next(layer for layer in model.layers if layer.name in (RESNET50, SMALL))
