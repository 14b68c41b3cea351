"""Layers by their kind: which drop units, normalise by statistics of a batch, are changed, or frozen."""

from torch import nn

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
NORMALISATION = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def is_dropout(module: nn.Module) -> bool:
    """Whether a layer drops units at random."""
    return isinstance(module, DROPOUT) and module.p > 0


def is_plain_dropout(module: nn.Module) -> bool:
    """Whether a layer drops units as torch's own does: a class of the user's may share masks, or do more than drop."""
    forwards = [kind.forward for kind in DROPOUT]
    return is_dropout(module) and type(module).forward in forwards and not is_changed(module)


def learns_statistics(module: nn.Module) -> bool:
    """Whether a normalisation layer takes statistics of its batches; one whose parameters are all frozen does not."""
    return isinstance(module, NORMALISATION) and not is_frozen(module, "")


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks act before or after a module's pass."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def is_changed(module: nn.Module) -> bool:
    """Whether a module computes something else than its class says: by hooks, or by a `forward` of its own."""
    return has_hooks(module) or "forward" in vars(module)


def is_frozen(net: nn.Module, path: str) -> bool:
    """Whether all parameters of a module are frozen; of one that has none, those of the nearest module around it."""
    parts = path.split(".") if path else []
    for depth in range(len(parts), -1, -1):
        parameters = list(net.get_submodule(".".join(parts[:depth])).parameters())
        if parameters:
            return not any(parameter.requires_grad for parameter in parameters)
    return False
