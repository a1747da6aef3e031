"""A frozen copy of a network for attacking it and for inference: batch norm folded, channels_last, bf16 where asked.

    view = AttackView(network, dtype=torch.bfloat16)
    for step in ...:
        view.refresh()  # after the weights have changed; in place, so that a captured CUDA graph stays valid
        adversarial = forms.craft("average", view, images, labels, threat, generator=...)

It is called as the network is, in eval mode: every knob works. Values are equal but for rounding.
"""

import copy

import torch
from torch import Tensor, nn

from lib import WorkbookError
from lib.models.conditioning import Conditions
from lib.models.layers import BatchNorm2d, Chain, Weighted, passes
from lib.models.network import Network

VIEWS = {"folded": torch.float32, "bf16": torch.bfloat16}  # by name, as recipes ask for them


def frozen(tensor: Tensor) -> nn.Parameter:
    """A copy that nothing trains, convolution weights in channels_last."""
    layout = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
    return nn.Parameter(tensor.detach().clone(memory_format=layout), requires_grad=False)


class Affine(nn.Module):
    """Batch norm with its running statistics, and the FiLM behind it, as scale and shift per channel.

    tables: per width (2, J, C), scales then shifts; J = the banks, or OAT's lambdas, which choose bank and modulation.
    """

    def __init__(self, norm: BatchNorm2d, network: Network):
        super().__init__()
        self.live = (norm, network)  # in a tuple, so that they do not become parts of this module
        rows = len(network.code_values) or norm.banks
        self.fixed = rows == 1
        self.tables = nn.ParameterList(
            frozen(torch.empty(2, rows, norm.norms[i * norm.banks].num_features, device=norm.norms[0].weight.device))
            for i in range(len(network.widths)))

    def refresh(self):
        norm, network = self.live
        for i, at in enumerate(passes(network)):
            banks = norm.norms[i * norm.banks:(i + 1) * norm.banks]
            scale = torch.stack([bank.weight * (bank.running_var + bank.eps).rsqrt() for bank in banks])
            shift = torch.stack([bank.bias for bank in banks]) - scale * torch.stack([b.running_mean for b in banks])
            if network.traits.film:
                bank = (network.code_lambdas > 0).long()
                scale, shift = scale[bank], shift[bank]
            if norm.film is not None:
                multiplier, added = norm.film.table(network.code_rows, at).chunk(2, dim=1)
                scale, shift = scale * multiplier, shift * multiplier + added
            self.tables[i].copy_(torch.stack([scale, shift]))

    def rows(self, at: Conditions) -> Tensor:
        """(2, 1, C), the same for all images, or (2, N, C)."""
        table = self.tables[at.width_index]
        if self.fixed:
            return table
        if at.code_index is not None:
            return table[:, at.code_index]
        return torch.lerp(table[:, :1], table[:, 1:], at.batch_norm)

    def forward(self, x: Tensor, at: Conditions) -> Tensor:
        scale, shift = self.rows(at)[..., None, None].to(x.dtype)
        return torch.addcmul(shift, x, scale)


class Folded(nn.Module):
    """A convolution or linear layer and the batch norm behind it, if any, as one layer.

    Where only the width can change its weight, that is folded at `refresh`, once per width; else (weight noise, several
    banks) at every pass, from a copy of the weight and its cached standard deviation.
    """

    def __init__(self, layer: Weighted, norm: BatchNorm2d | None, network: Network, dtype: torch.dtype):
        super().__init__()
        self.live = (layer, network)
        self.affine = None if norm is None else Affine(norm, network)
        self.fixed = layer.alpha is None and (norm is None or self.affine.fixed)
        self.layer = shell(layer)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        if self.fixed:
            at_every_width = passes(network) if layer.slim_in or layer.slim_out else passes(network)[:1]
            for weight, _, _, bias in (layer.parts(at) for at in at_every_width):
                self.weights.append(frozen(weight.to(dtype)))
                if bias is not None or norm is not None:
                    self.biases.append(frozen(weight.new_empty(len(weight), dtype=dtype)))
        else:
            self.layer._parameters = {n: p if p is None else frozen(p) for n, p in layer._parameters.items()}
            self.layer.deviations = layer.weight.new_empty(len(network.widths))

    def refresh(self):
        layer, network = self.live
        if not self.fixed:
            for name, parameter in layer.named_parameters(recurse=False):
                self.layer._parameters[name].copy_(parameter)
            self.layer.deviations.copy_(torch.stack([layer.deviation(at) for at in passes(network)]))
            return
        for i, at in zip(range(len(self.weights)), passes(network), strict=False):
            weight, _, _, bias = self.fold(layer.parts(at), at)
            self.weights[i].copy_(weight)
            if len(self.biases):
                self.biases[i].copy_(bias)

    def fold(self, parts: tuple, at: Conditions) -> tuple:
        """`Weighted.parts` with a scale and shift that all images share multiplied in."""
        if self.affine is None:
            return parts
        weight, eta, spread, bias = parts
        scale, shift = self.affine.rows(at)[:, 0]
        column = scale.view(-1, *(1,) * (weight.dim() - 1))
        return (weight * column, eta, None if spread is None else spread * column,
                shift if bias is None else bias * scale + shift)

    def forward(self, x: Tensor, at: Conditions) -> Tensor:
        if self.fixed:
            i = at.width_index if len(self.weights) > 1 else 0
            return self.layer.apply_weight(x, self.weights[i], self.biases[i] if len(self.biases) else None)
        parts = self.layer.parts(at)
        per_image = self.affine is not None and at.code_index is not None and len(at.code_index) > 1
        if not per_image:
            parts = self.fold(parts, at)
        y = self.layer.run(x, at, *(part if part is None else part.to(x.dtype) for part in parts))
        return self.affine(y, at) if per_image else y


class Float32(nn.Module):
    """A head whose logits come out in float32."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, x, at):
        return self.head(x, at).float()


def shell(module: nn.Module) -> nn.Module:
    """The module without its tensors and parts."""
    empty = copy.copy(module)
    empty._parameters, empty._modules = dict.fromkeys(module._parameters), {}
    empty._buffers = dict.fromkeys(module._buffers)
    return empty


class AttackView(Network):
    """`view(images, point, generator)`, `exits.prefix` and `exits.route` as with the network, which it follows.

    dtype: of weights and features; images and logits stay float32.  It cannot be trained or put into train mode.
    """

    def __init__(self, network: Network, dtype: torch.dtype = torch.float32):
        nn.Module.__init__(self)
        copied = {name: value for name, value in vars(network).items() if not name.startswith("_")}
        self.__dict__.update({**copied, "training": False})
        for name, buffer in network._buffers.items():  # OAT's codes, which never change
            self.register_buffer(name, buffer)
        self.dtype, self._followed = dtype, []
        self.stages = nn.ModuleList(self._freeze(stage, network) for stage in network.stages)
        self.heads = nn.ModuleList(Float32(self._freeze(head, network)) for head in network.heads)
        self.eval().refresh()

    def _freeze(self, module: nn.Module, network: Network) -> nn.Module:
        """The module with every layer replaced by its frozen form; tensors of unknown modules are copied."""
        if isinstance(module, Weighted):
            return Folded(module, None, network, self.dtype)
        if isinstance(module, BatchNorm2d):
            return Affine(module, network)
        twin = shell(module)
        for own, live in ((twin._parameters, module._parameters), (twin._buffers, module._buffers)):
            for name, tensor in live.items():
                if tensor is not None:
                    own[name] = frozen(tensor.to(self.dtype) if tensor.is_floating_point() else tensor)
                    self._followed.append((own[name], tensor))
        children, names = list(module.children()), list(module._modules)
        for i, (name, child) in enumerate(zip(names, children, strict=True)):
            follower = children[i + 1] if isinstance(module, Chain) and i + 1 < len(children) else None
            if isinstance(child, Weighted) and isinstance(follower, BatchNorm2d):
                twin._modules[name] = Folded(child, follower, network, self.dtype)
            elif not (isinstance(child, BatchNorm2d) and i and isinstance(children[i - 1], Weighted)
                      and isinstance(module, Chain)):
                twin._modules[name] = self._freeze(child, network)
        return twin

    @torch.no_grad()
    def refresh(self) -> "AttackView":
        """Take over the network's current weights and statistics, in place: every tensor keeps its address."""
        for own, live in self._followed:
            own.copy_(live)
        for kind in (Affine, Folded):
            for module in self.modules():
                if isinstance(module, kind):
                    module.refresh()
        return self

    @property
    def image_type(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    def train(self, mode: bool = True) -> "AttackView":
        if mode:
            raise WorkbookError("an attack view is frozen in eval mode; for modes batch and authors attack the network")
        return super().train(False)

    def advance(self, x: Tensor, exit: int, at: Conditions) -> Tensor:
        if exit == 0:
            x = x.to(self.dtype, memory_format=torch.channels_last)
        return super().advance(x, exit, at)
