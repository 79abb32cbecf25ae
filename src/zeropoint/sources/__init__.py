"""The one place that opens a source model, whoever asks and whatever runs it; no torch.

`locate` finds a model by a path or a hub name. `open_source` reads what is on disk: config.json, and the names,
types and shapes of the tensors. `Source.check` holds these against what an architecture asks for: the torch runtime has
transformers' model class, the native engine its own record of the family. So a missing, misshapen or unknown tensor is
answered in the same words by every command and by both engines.
"""

from zeropoint.sources.folder import open_source
from zeropoint.sources.location import locate
from zeropoint.sources.source import Source, Tensor, Wanted

__all__ = ["Source", "Tensor", "Wanted", "locate", "open_source"]
