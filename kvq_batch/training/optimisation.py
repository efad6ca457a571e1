"""AdamW with two learning rates, the schedule of the rate, and the moving average of the weights (KVQ_SPEC section 5).

Everything depends on the number of the step and the gradient only, so a training resumes from tensors.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from kvq_batch.domain.errors import FatalError
from kvq_batch.training.process_group import ProcessGroup
from kvq_batch.training.settings import Optimiser

_MOMENTS = ("exp_avg", "exp_avg_sq")

UpdateRule = Callable[[str], tuple[bool, bool]]
"""Returns whether a tensor, given its name, has the rate of the backbone, and whether it is decayed."""


def lr_factor(step: int, warmup_steps: int, steps: int) -> float:
    """Return the factor of the learning rate at step `step` (from 0).

    Published: step / W up to W, then 0.5 (1 + cos(pi (step - W) / steps)). So the first step of a warm-up changes only
    the moments, and the last factor is slightly above 0.
    """
    if step <= warmup_steps and warmup_steps:
        return step / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / steps))


class Optimisation:
    """The optimiser of a network's parameters, and `ema_params`, their exponential moving average by name."""

    def __init__(self, network: nn.Module, settings: Optimiser, steps: int, rule: UpdateRule) -> None:
        self._settings = settings
        self._steps = steps
        named = dict(network.named_parameters())
        # Frozen tensors are part of the averages, because those are the weights that are saved, and of nothing else.
        self._named = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
        self.ema_params = {name: parameter.detach().clone() for name, parameter in named.items()}
        groups = []
        for is_backbone, is_decayed in ((True, True), (False, True), (True, False), (False, False)):
            rate = settings.learning_rate * (settings.backbone_factor if is_backbone else 1)
            parameters = [p for name, p in self._named.items() if rule(name) == (is_backbone, is_decayed)]
            decay = settings.weight_decay if is_decayed else 0.0
            groups.append({"params": parameters, "base_rate": rate, "weight_decay": decay})
        self._optimiser = torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay)

    def update(self, step: int, group: ProcessGroup) -> float:
        """Sum the gradients of all processes, take step `step`, clear the gradients, and return their norm.

        Raises:
            FatalError: the gradient is not finite; the weights stay as they were.
        """
        # A tensor that no loss reaches has gradient 0, and weight decay still acts on it, as published.
        gradients = []
        for parameter in self._named.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        group.all_reduce_sum(gradients)
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(norm):
            raise FatalError(
                f"Step {step}: the norm of the gradient is {norm}. Lower optimiser.learning_rate, set "
                "optimiser.clip_norm or train in fp32, and start again."
            )
        if self._settings.clip_norm is not None and norm > self._settings.clip_norm:
            torch._foreach_mul_(gradients, self._settings.clip_norm / norm)
        factor = lr_factor(step, self._settings.warmup_steps, self._steps)
        for entry in self._optimiser.param_groups:
            entry["lr"] = entry["base_rate"] * factor
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, parameter in self._named.items():
                self.ema_params[name].lerp_(parameter, 1 - self._settings.ema_decay)
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters, averages and moments, named "<kind>/<parameter>"; moments exist after the first step."""
        found = {f"weight/{name}": parameter.detach() for name, parameter in self._named.items()}
        found |= {f"average/{name}": self.ema_params[name] for name in self._named}
        for name, parameter in self._named.items():
            state = self._optimiser.state.get(parameter, {})
            found |= {f"{moment}/{name}": state[moment] for moment in _MOMENTS if moment in state}
        return found

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Restore what `tensors` returned after `step` steps."""
        with torch.no_grad():
            for name, parameter in self._named.items():
                parameter.copy_(tensors[f"weight/{name}"])
                self.ema_params[name].copy_(tensors[f"average/{name}"])
                if step:
                    state = {moment: torch.empty_like(parameter) for moment in _MOMENTS}
                    for moment, value in state.items():
                        value.copy_(tensors[f"{moment}/{name}"])
                    self._optimiser.state[parameter] = {"step": torch.tensor(float(step)), **state}
