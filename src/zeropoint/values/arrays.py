"""Names of numpy array types."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Bytes = NDArray[np.uint8]
#: Codes of quantized weights.
Codes = NDArray[np.int8]
Int16s = NDArray[np.int16]
Int32s = NDArray[np.int32]
#: Token ids.
Tokens = NDArray[np.int64]
#: Logits `[tokens, vocabulary]`, or of one token `[vocabulary]`.
Logits = NDArray[np.float32]
