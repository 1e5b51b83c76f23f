"""The error of everything that writes files."""

from ..errors import KernelDNAError


class ExportError(KernelDNAError, RuntimeError):
    """An export that failed or does not agree with torch; the message says what to change."""
