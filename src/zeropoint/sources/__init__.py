"""Opening of source models, for every command and both engines. Does not import torch.

`locate` finds a model by path or hub name. `open_source` reads config.json and the names, types and shapes of the
tensors. `Source.check` compares them with the tensors that an architecture requires: the torch runtime takes these from
transformers' model class, the native engine from its model spec. All commands therefore report a missing, misshapen or
unknown tensor with the same message.
"""

from zeropoint.sources.folder import open_source
from zeropoint.sources.location import locate
from zeropoint.sources.source import Source, Tensor, Wanted

__all__ = ["Source", "Tensor", "Wanted", "locate", "open_source"]
