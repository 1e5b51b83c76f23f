"""Released checkpoints of other code, rewritten to our layout."""
from .official import convert_official
