"""The one exception of this package."""


class DataError(ValueError):
    """Something is wrong with the data a config points to; the message is one line fit for a terminal."""
