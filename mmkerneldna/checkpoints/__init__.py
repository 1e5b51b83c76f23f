"""Released checkpoints of other code, rewritten to our layout."""
from .odconv import convert_odconv
from .official import convert_official
