"""The runtimes of exported files, imported when they are needed: none is a dependency of the package."""

import importlib
from typing import Any

from ..errors import KernelDNAError

#: import name -> extra of this package that installs it
EXTRAS = {'onnx': 'onnx', 'onnxruntime': 'onnx', 'onnxscript': 'onnx', 'openvino': 'openvino', 'nncf': 'openvino'}


class RuntimeMissingError(KernelDNAError, ImportError):
    """A runtime that is not installed; the message has the command that installs it."""


def require(name: str) -> Any:
    """Import a runtime.

    Raises:
        RuntimeMissingError: one line with the pip command.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if error.name not in (None, name):
            raise RuntimeMissingError(f'{name} does not import ({error}): pip install --force-reinstall {name}') from error
        raise RuntimeMissingError(
            f"{name} is not installed: pip install {name} (or pip install 'mmkerneldna[{EXTRAS[name]}]')"
        ) from error
