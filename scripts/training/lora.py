"""Encoder -> the same with low-rank adapters in the layers that learn (peft); a network with adapters -> a plain one.

Hu et al. 2021, arXiv:2106.09685: a layer's weights stay, and the product of two thin matrices is learnt beside them. It
saves the gradients and the optimizer's state of the layer, and none of its activations.
"""

import copy
from typing import Any

import torch
from torch import nn

from scripts.errors import bad_value
from scripts.networks.classifier import SequenceClassifier


def add_adapters(network: SequenceClassifier, rank: int) -> SequenceClassifier:
    """The same network, in which adapters of that rank learn in place of the encoder's layers that would.

    Args:
        network: after `unfreeze`; norms, tokens and biases of the encoder stay then too. Its head learns as before.
        rank: of the product; 0 leaves everything as it is.

    Raises:
        ValueError: a rank below 0, or no layer of the encoder learns.
        ImportError: peft is not installed.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 0:
        raise ValueError(bad_value("configuration", "lora_rank", rank, "a whole number of at least 0; 0: no adapters"))
    if not rank:
        return network
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        way_out = "Run pip install peft, or leave lora_rank at 0."
        raise ImportError(bad_value("configuration", "lora_rank", rank, "the package peft", way_out)) from error
    backbone = network.encoder.backbone
    layers = {name: part for name, part in backbone.named_modules() if isinstance(part, nn.Linear)}
    learnt = [name for name, layer in layers.items() if layer.weight.requires_grad]
    if not learnt:
        allowed = "0 where nothing of the encoder learns"
        raise ValueError(bad_value("configuration", "lora_rank", rank, allowed, "Raise --trainable_blocks."))
    inject_adapter_in_model(
        LoraConfig(r=rank, lora_alpha=rank, target_modules=learnt), backbone
    )  # and freezes the rest
    return network


def without_adapters(network: SequenceClassifier) -> SequenceClassifier:
    """A copy in which what adapters have learnt is part of the layers; the network itself if it has none."""
    if not any(map(_is_adapter, network.modules())):
        return network
    plain = copy.deepcopy(network)
    for name, module in list(plain.named_modules()):
        if _is_adapter(module):
            module.merge()
            plain.set_submodule(name, module.get_base_layer())
    return plain


@torch.no_grad()
def take_weights(network: SequenceClassifier, plain: SequenceClassifier) -> None:
    """Give a network, maybe with adapters, the weights of a plain one; the adapters stay as they are."""
    given = plain.state_dict()
    for name, tensor in network.state_dict().items():
        if (name := name.replace(".base_layer.", ".")) in given:
            tensor.copy_(given[name])


def _is_adapter(module: Any) -> bool:
    return hasattr(module, "get_base_layer") and hasattr(module, "merge")
