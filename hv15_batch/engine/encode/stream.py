"""Run a text encoder that is larger than the card: layer by layer over all prompts.

Each layer's weights go to the card once for a group of prompts, from ordinary (unpinned) memory.
Each prompt is computed by itself, in the shape that plain diffusers gives it, so that an
embedding does not depend on which other prompts are in the manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call


@dataclass
class _Call:
    """What a prompt hands to the first layer, and the state it has reached."""

    hidden: torch.Tensor
    arguments: dict[str, Any]


class _FirstLayerReachedError(Exception):
    def __init__(self, call: _Call) -> None:
        super().__init__()
        self.call = call


class StreamedTextEncoder:
    """Stands for a text encoder in diffusers' functions; its weights stay in host memory.

    First `gather` the inputs of all prompts, then `run` the layers, then each call with the same
    inputs returns what was computed.
    """

    def __init__(self, encoder: Any, device: torch.device, num_layers_to_skip: int = 2) -> None:
        """Take an encoder on the CPU.

        Args:
            encoder: with `layers`; a Qwen2.5-VL text model. Left as it is.
            device: where the layers run.
            num_layers_to_skip: as in diffusers: the state wanted is
                `hidden_states[-(num_layers_to_skip + 1)]`.
        """
        self._encoder = encoder
        self._device = device
        self._skip = num_layers_to_skip
        self._results: dict[bytes, torch.Tensor] = {}
        self.dtype = encoder.dtype

    @torch.no_grad()
    def run(self, inputs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Compute the states of these (input_ids, attention_mask) pairs, each [1, L].

        The last layers, whose output nobody reads, are not run: `hidden_states` holds the input
        of each layer and then the normed output of the last one.
        """
        calls = [self._first_layer_call(ids.cpu(), mask.cpu()) for ids, mask in inputs]
        layers = self._encoder.layers[: len(self._encoder.layers) - self._skip]
        for layer in layers:
            weights = {
                name: tensor.to(self._device)
                for name, tensor in (*layer.named_parameters(), *layer.named_buffers())
            }
            for call in calls:
                output = functional_call(layer, weights, (call.hidden,), call.arguments)
                call.hidden = output[0] if isinstance(output, tuple) else output
            del weights
        for (ids, _), call in zip(inputs, calls, strict=True):
            self._results[_key(ids)] = call.hidden.cpu()

    def __call__(self, input_ids: torch.Tensor, **_: Any) -> Any:
        """Return the computed state where diffusers looks for it."""
        state = self._results.pop(_key(input_ids)).to(input_ids.device)
        return _Output([state] + [state] * self._skip)

    def _first_layer_call(self, ids: torch.Tensor, mask: torch.Tensor) -> _Call:
        """Return what the encoder hands to its first layer, moved to the device."""

        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _FirstLayerReachedError(_Call(args[0], dict(kwargs)))

        hook = self._encoder.layers[0].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self._encoder(input_ids=ids, attention_mask=mask, use_cache=False)
        except _FirstLayerReachedError as reached:
            call = reached.call
        finally:
            hook.remove()
        return _Call(call.hidden.to(self._device), _moved(call.arguments, self._device))


@dataclass
class _Output:
    hidden_states: list[torch.Tensor]


class InputRecorder:
    """Stands for a text encoder to learn the inputs that diffusers would give it."""

    def __init__(self) -> None:
        """Begin without inputs."""
        self.inputs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> Any:
        """Note the inputs; what is returned only has the right shape."""
        self.inputs.append((input_ids, attention_mask))
        state = torch.zeros(*input_ids.shape, 1)
        return _Output([state, state, state])


def _key(ids: torch.Tensor) -> bytes:
    return bytes(ids.cpu().contiguous().numpy().tobytes())


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _moved(item, device) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_moved(item, device) for item in value)
    return value
